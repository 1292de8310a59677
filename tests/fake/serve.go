package fake

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/uuid"
)

var codecs = serializer.NewCodecFactory(known)

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	request, ok := a.parse(path, r)
	if !ok {
		if found := a.discover(path); found != nil && r.Method == http.MethodGet {
			respond(w, http.StatusOK, found)
			return
		}
		refuse(w, apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "the server could not find "+r.URL.Path, 0, true))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil && (request.Verb == "create" || request.Verb == "update") {
		request.Object, err = a.decode(body, request)
	}
	if err == nil {
		err = a.fault(request)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	if err := a.answer(w, r, request, body); err != nil {
		refuse(w, err)
	}
}

// parse finds out what a request is about.
func (a *API) parse(path []string, r *http.Request) (Request, bool) {
	request := Request{accept: r.Header.Get("Accept"), labels: r.URL.Query().Get("labelSelector"), fields: r.URL.Query().Get("fieldSelector")}
	request.Limit, _ = strconv.Atoi(r.URL.Query().Get("limit"))
	switch {
	case len(path) > 2 && path[0] == "api":
		request.Resource.Version, path = path[1], path[2:]
	case len(path) > 3 && path[0] == "apis":
		request.Resource.Group, request.Resource.Version, path = path[1], path[2], path[3:]
	default:
		return request, false
	}
	if path[0] == "namespaces" && len(path) > 2 && path[2] != "status" && path[2] != "finalize" {
		request.Namespace, path = path[1], path[2:]
	}
	request.Resource.Resource = path[0]
	if len(path) > 1 {
		request.Name = path[1]
	}
	if len(path) > 2 {
		request.Subresource = path[2]
	}
	a.mu.Lock()
	_, ok := a.kindAt(request.Resource)
	a.mu.Unlock()
	switch {
	case request.Subresource == "exec":
		request.Verb = "exec"
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "" && r.URL.Query().Get("watch") != "false" && r.URL.Query().Get("watch") != "0":
		request.Verb = "watch"
		if name, found := fields.ParseSelectorOrDie(request.fields).RequiresExactMatch("metadata.name"); found {
			request.Name = name
		}
	case r.Method == http.MethodGet && request.Name == "":
		request.Verb = "list"
	default:
		request.Verb = map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	}
	return request, ok || strings.HasPrefix(request.Resource.Resource, "selfsubject")
}

// decode reads a body in JSON or Protobuf.
func (a *API) decode(body []byte, request Request) (*unstructured.Unstructured, error) {
	content := map[string]any{}
	if len(body) > 0 && body[0] == '{' {
		if err := utiljson.Unmarshal(body, &content); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		u := &unstructured.Unstructured{Object: content}
		if u.GetKind() == "" {
			a.mu.Lock()
			kind, _ := a.kindAt(request.Resource)
			a.mu.Unlock()
			u.SetGroupVersionKind(request.Resource.GroupVersion().WithKind(kind.Kind))
		}
		return u, nil
	}
	object, _, err := codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return toUnstructured(object)
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, request Request, body []byte) error {
	switch request.Verb {
	case "exec":
		if a.exec == nil {
			return apierrors.NewBadRequest("the fake has no node: see NewNode")
		}
		a.exec(w, r, request)
		return nil
	case "watch":
		return a.watch(w, r, request)
	case "list":
		return a.list(w, r, request)
	}
	if strings.HasPrefix(request.Resource.Resource, "selfsubject") {
		review := request.Object
		_ = unstructured.SetNestedField(review.Object, true, "status", "allowed")
		respond(w, http.StatusCreated, review.Object)
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	name := types.NamespacedName{Namespace: request.Namespace, Name: request.Name}
	found := a.objects[request.Resource][name]
	if request.Verb == "create" {
		created, err := a.create(request)
		if err == nil {
			respond(w, http.StatusCreated, created.Object)
		}
		return err
	}
	if found == nil {
		return apierrors.NewNotFound(request.Resource.GroupResource(), request.Name)
	}
	if request.Subresource == "scale" {
		return a.scale(w, r, request, found, body)
	}
	switch request.Verb {
	case "get":
		if request.Subresource == "log" {
			log, ok := found.GetAnnotations()[LogAnnotation+"-"+r.URL.Query().Get("container")]
			if !ok {
				log = found.GetAnnotations()[LogAnnotation]
			}
			_, _ = io.WriteString(w, log)
			return nil
		}
		respond(w, http.StatusOK, request.shown(found))
	case "update", "patch":
		changed, err := a.changedBy(request, found, r.Header.Get("Content-Type"), body)
		if err != nil {
			return err
		}
		if changed.GetResourceVersion() != "" && changed.GetResourceVersion() != found.GetResourceVersion() {
			return apierrors.NewConflict(request.Resource.GroupResource(), request.Name, errors.New("the object has been modified; please apply your changes to the latest version and try again"))
		}
		a.storeOrRemove(request.Resource, changed)
		respond(w, http.StatusOK, request.shown(changed))
	case "delete":
		if err := precondition(body, found, request); err != nil {
			return err
		}
		a.remove(request.Resource, found)
		if left := a.objects[request.Resource][name]; left != nil {
			found = left
		}
		respond(w, http.StatusOK, found.Object)
	}
	return nil
}

// LogAnnotation on a pod is what a request for its log is answered with; with a
// container's name behind a hyphen, one for that container's.
const LogAnnotation = "fake/log"

func (a *API) create(request Request) (*unstructured.Unstructured, error) {
	object := request.Object.DeepCopy()
	kind, _ := a.kindAt(request.Resource)
	if kind.Namespaced {
		object.SetNamespace(request.Namespace)
		if namespace := a.objects[namespaces][types.NamespacedName{Name: request.Namespace}]; namespace != nil && namespace.GetDeletionTimestamp() != nil {
			return nil, apierrors.NewForbidden(request.Resource.GroupResource(), object.GetName(), fmt.Errorf("unable to create new content in namespace %s because it is being terminated", request.Namespace))
		}
	}
	if object.GetName() == "" && object.GetGenerateName() != "" {
		object.SetName(object.GetGenerateName() + rand.String(5))
	}
	if object.GetName() == "" {
		return nil, apierrors.NewBadRequest("name or generateName is required")
	}
	if a.objects[request.Resource][nameOf(object)] != nil {
		return nil, apierrors.NewAlreadyExists(request.Resource.GroupResource(), object.GetName())
	}
	if kind.Status && kind.Group == "snapshot.storage.k8s.io" {
		delete(object.Object, "status")
	}
	object.SetUID(uuid.NewUUID())
	object.SetDeletionTimestamp(nil)
	object.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	a.store(request.Resource, object)
	return object.DeepCopy(), nil
}

// changedBy is an object after an update or a patch.
func (a *API) changedBy(request Request, found *unstructured.Unstructured, contentType string, body []byte) (*unstructured.Unstructured, error) {
	changed := request.Object
	if request.Verb == "patch" {
		before, err := json.Marshal(found.Object)
		if err != nil {
			return nil, err
		}
		patched, err := patch(found, before, contentType, body)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		changed = &unstructured.Unstructured{}
		if err := utiljson.Unmarshal(patched, &changed.Object); err != nil {
			return nil, err
		}
	}
	changed = changed.DeepCopy()
	kind, _ := a.kindAt(request.Resource)
	switch {
	case request.Subresource == "status":
		status := changed.Object["status"]
		version := changed.GetResourceVersion()
		changed = found.DeepCopy()
		changed.Object["status"] = status
		changed.SetResourceVersion(version)
	case kind.Status:
		delete(changed.Object, "status")
		if status, ok := found.Object["status"]; ok {
			changed.Object["status"] = runtime.DeepCopyJSONValue(status)
		}
	}
	if request.Verb == "patch" && changed.GetResourceVersion() == found.GetResourceVersion() {
		changed.SetResourceVersion("")
	}
	changed.SetNamespace(found.GetNamespace())
	changed.SetName(found.GetName())
	changed.SetUID(found.GetUID())
	changed.SetCreationTimestamp(found.GetCreationTimestamp())
	changed.SetDeletionTimestamp(found.GetDeletionTimestamp())
	changed.SetGroupVersionKind(found.GroupVersionKind())
	return changed, nil
}

func patch(found *unstructured.Unstructured, before []byte, contentType string, body []byte) ([]byte, error) {
	switch types.PatchType(strings.Split(contentType, ";")[0]) {
	case types.MergePatchType:
		return mergePatch(before, body)
	case types.StrategicMergePatchType:
		typed, err := known.New(found.GroupVersionKind())
		if err != nil {
			return nil, err
		}
		return strategicpatch.StrategicMergePatch(before, body, typed)
	default:
		return nil, fmt.Errorf("the fake applies no patches of type %s", contentType)
	}
}

// mergePatch is RFC 7386.
func mergePatch(before, body []byte) ([]byte, error) {
	var target, change map[string]any
	if err := errors.Join(utiljson.Unmarshal(before, &target), utiljson.Unmarshal(body, &change)); err != nil {
		return nil, err
	}
	var merge func(target, change map[string]any) map[string]any
	merge = func(target, change map[string]any) map[string]any {
		if target == nil {
			target = map[string]any{}
		}
		for key, value := range change {
			nested, isMap := value.(map[string]any)
			switch {
			case value == nil:
				delete(target, key)
			case isMap:
				inner, _ := target[key].(map[string]any)
				target[key] = merge(inner, nested)
			default:
				target[key] = value
			}
		}
		return target
	}
	return json.Marshal(merge(target, change))
}

func precondition(body []byte, found *unstructured.Unstructured, request Request) error {
	options := &metav1.DeleteOptions{}
	if len(body) > 0 {
		if _, _, err := codecs.UniversalDeserializer().Decode(body, nil, options); err != nil && body[0] == '{' {
			_ = json.Unmarshal(body, options)
		}
	}
	if p := options.Preconditions; p != nil {
		if (p.UID != nil && *p.UID != found.GetUID()) || (p.ResourceVersion != nil && *p.ResourceVersion != found.GetResourceVersion()) {
			return apierrors.NewConflict(request.Resource.GroupResource(), request.Name, errors.New("the precondition does not hold"))
		}
	}
	return nil
}

// shown is an object as the client wants to have it.
func (r Request) shown(object *unstructured.Unstructured) map[string]any {
	if !strings.Contains(r.accept, "as=PartialObjectMetadata") {
		return object.Object
	}
	return map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object.Object["metadata"]}
}

// selects reports whether an object is among those that a list or a watch asks for.
func (r Request) selects(object *unstructured.Unstructured) (bool, error) {
	if object == nil || (r.Namespace != "" && object.GetNamespace() != r.Namespace) {
		return false, nil
	}
	byLabel, err := labels.Parse(r.labels)
	if err != nil {
		return false, apierrors.NewBadRequest(err.Error())
	}
	byField, err := fields.ParseSelector(r.fields)
	if err != nil {
		return false, apierrors.NewBadRequest(err.Error())
	}
	of := fields.Set{}
	for _, requirement := range byField.Requirements() {
		value, _, _ := unstructured.NestedFieldNoCopy(object.Object, strings.Split(requirement.Field, ".")...)
		if value != nil {
			of[requirement.Field] = fmt.Sprint(value)
		}
	}
	return byLabel.Matches(labels.Set(object.GetLabels())) && byField.Matches(of), nil
}

func (a *API) list(w http.ResponseWriter, r *http.Request, request Request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []unstructured.Unstructured
	for _, object := range a.objects[request.Resource] {
		selected, err := request.selects(object)
		if err != nil {
			return err
		}
		if selected {
			all = append(all, *object)
		}
	}
	slices.SortFunc(all, byName)
	page := metav1.ListMeta{ResourceVersion: fmt.Sprint(a.version)}
	if from := r.URL.Query().Get("continue"); from != "" {
		after, _ := base64.RawURLEncoding.DecodeString(from)
		all = slices.DeleteFunc(all, func(o unstructured.Unstructured) bool { return o.GetNamespace()+"/"+o.GetName() <= string(after) })
	}
	if limit, _ := strconv.Atoi(r.URL.Query().Get("limit")); limit > 0 && len(all) > limit {
		left := int64(len(all) - limit)
		all = all[:limit]
		last := all[limit-1]
		page.Continue = base64.RawURLEncoding.EncodeToString([]byte(last.GetNamespace() + "/" + last.GetName()))
		page.RemainingItemCount = &left
	}
	items := []any{}
	for i := range all {
		items = append(items, request.shown(&all[i]))
	}
	kind, _ := a.kindAt(request.Resource)
	list := map[string]any{"apiVersion": request.Resource.GroupVersion().String(), "kind": kind.Kind + "List", "metadata": page, "items": items}
	if strings.Contains(request.accept, "as=PartialObjectMetadataList") {
		list["apiVersion"], list["kind"] = "meta.k8s.io/v1", "PartialObjectMetadataList"
		for i := range all {
			items[i] = map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": all[i].Object["metadata"]}
		}
	}
	respond(w, http.StatusOK, list)
	return nil
}

// watch sends what happens after a version; without one, everything that exists
// first.
func (a *API) watch(w http.ResponseWriter, r *http.Request, request Request) error {
	flusher, ok := w.(http.Flusher)
	if !ok {
		return errors.New("the connection cannot be flushed")
	}
	seen, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	encoder := json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(kind string, object *unstructured.Unstructured) {
		_ = encoder.Encode(map[string]any{"type": kind, "object": request.shown(object)})
		flusher.Flush()
	}
	flusher.Flush()

	a.mu.Lock()
	dropped := a.dropped
	if seen == 0 {
		for _, object := range a.objects[request.Resource] {
			if selected, err := request.selects(object); err == nil && selected {
				send("ADDED", object)
			}
		}
		seen = a.version
	}
	a.mu.Unlock()
	for {
		a.mu.Lock()
		changed := a.changed
		var news []change
		for i := len(a.history) - 1; i >= 0 && a.history[i].version > seen; i-- {
			if a.history[i].resource == request.Resource {
				news = append(news, a.history[i])
			}
		}
		seen = a.version
		a.mu.Unlock()
		for _, c := range slices.Backward(news) {
			now, _ := request.selects(c.object)
			before, _ := request.selects(c.before)
			switch {
			case c.kind == "DELETED" && before, !now && before:
				send("DELETED", c.object)
			case c.kind != "DELETED" && now && !before:
				send("ADDED", c.object)
			case c.kind != "DELETED" && now:
				send("MODIFIED", c.object)
			}
		}
		select {
		case <-changed:
		case <-dropped:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}
