package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/render"
)

// pollInterval is how often a task looks whether something has happened.
const pollInterval = 500 * time.Millisecond

// Describe says what a task does, for people. It can hold secrets.
func Describe(t *render.Task) string {
	if kind, ok := taskKinds()[t.Func]; ok {
		if text := kind.describe(t); text != "" {
			return t.Func + " " + text
		}
	}
	return t.Func
}

// Ends reports whether the task scales a workload to 0 and waits until its pods have
// ended.
func Ends(t *render.Task, kind, namespace, name string) bool {
	if t.Func != "ScaleWorkload" {
		return false
	}
	s, err := scalingOf(t)
	return err == nil && s.replicas == 0 && s.wait && scalable[s.kind].kind == kind && s.namespace == namespace && s.name == name
}

// Changes reports whether the task scales, patches or deletes the object of a kind that
// has this name, in namespace.
func Changes(t *render.Task, namespace, apiVersion, kind, name string) bool {
	switch t.Func {
	case "ScaleWorkload":
		s, err := scalingOf(t)
		return err == nil && s.namespace == namespace && scalable[s.kind].kind == kind && s.name == name
	case "KubeOps":
		ref, err := reference("args.objectReference", t.Args["objectReference"])
		verb, _ := t.Args.String("operation")
		if err != nil || verb == "create" || ref.Name != name {
			return false
		}
		in, _ := t.Args.String("namespace") // prepareOperation has filled it in
		gvk := schema.FromAPIVersionAndKind(apiVersion, kind)
		resource, _ := meta.UnsafeGuessKindToResource(gvk)
		return cmp.Or(ref.Namespace, in) == namespace && ref.Group == gvk.Group && ref.Resource == resource.Resource
	}
	return false
}

// taskKind is a function that is a task.
type taskKind struct {
	required, optional []string
	// raw args are rendered by prepare.
	raw bool
	// makesPods: see render.Function. The command of a KubeTask may be kubectl.
	makesPods bool
	prepare   func(*Tasks, context.Context, *render.Draft) error
	run       func(*Tasks, context.Context, *render.Task, *access) (map[string]any, error)
	foretell  func(*Tasks, context.Context, *render.Task, []*render.Task) (map[string]any, error)
	describe  func(*render.Task) string
}

// taskKinds are Kanister's functions that act through the API server.
var taskKinds = sync.OnceValue(func() map[string]taskKind {
	waiting := taskKind{
		required: []string{"timeout", "conditions"}, raw: true,
		prepare: (*Tasks).prepareWait, run: (*Tasks).await, describe: describeWait,
	}
	return map[string]taskKind{
		"KubeTask": {
			required: []string{"image", "command"}, optional: podArguments, makesPods: true,
			prepare: (*Tasks).preparePod, run: (*Tasks).runPod, describe: describePod,
		},
		multiContainerRun: {
			required: []string{"backgroundImage", "backgroundCommand", "outputImage", "outputCommand"},
			optional: slices.Concat(podArguments, []string{"initImage", "initCommand", "sharedVolumeMedium", "sharedVolumeSizeLimit", "sharedVolumeDir"}), makesPods: true,
			prepare: (*Tasks).preparePod, run: (*Tasks).runPod, describe: describePod,
		},
		"KubeOps": {
			required: []string{"operation"}, optional: []string{"spec", "objectReference", "namespace"}, raw: true, makesPods: true,
			prepare: (*Tasks).prepareOperation, run: (*Tasks).operate, describe: describeOperation,
		},
		"ScaleWorkload": {
			required: []string{"replicas"}, optional: []string{"namespace", "name", "kind", "waitForReady"}, makesPods: true,
			prepare: (*Tasks).prepareScaling, run: (*Tasks).scale, foretell: (*Tasks).foretellScaling, describe: describeScaling,
		},
		render.WaitFunction:   waiting,
		render.WaitV2Function: waiting,
	}
})

// Tasks runs tasks.
type Tasks struct {
	// Warn is told what is no error but should not go unnoticed; nil is not.
	Warn func(format string, args ...any)

	// Pods returns the defaults of pods; nil has those that hold without a
	// configuration.
	Pods func(ctx context.Context) config.HelperPods

	clients *cluster.Clients
	// as makes the clients of a user.
	as func(user string) (*access, error)
	// mapper knows the kinds that the API server has.
	mapper meta.RESTMapper

	mu     sync.Mutex
	scaled map[string]*scaled // by workload
}

// access is the clients that a task acts with.
type access struct {
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

// NewTasks runs tasks in a cluster.
func NewTasks(clients *cluster.Clients) *Tasks {
	t := &Tasks{clients: clients, scaled: map[string]*scaled{}}
	if clients.Objects != nil {
		t.mapper = clients.Objects.RESTMapper()
	}
	t.as = func(user string) (*access, error) {
		if clients.Config == nil {
			return nil, errors.New("there is no way to act as another user")
		}
		config := rest.CopyConfig(clients.Config)
		config.Impersonate = rest.ImpersonationConfig{UserName: user}
		kube, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		objects, err := dynamic.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		return &access{kube, objects}, nil
	}
	return t
}

// TaskFunctions are Kanister's functions that act through the API server. nil
// knows them by name, and can neither check nor foretell what depends on the
// cluster.
func TaskFunctions(tasks *Tasks) map[string]render.Function {
	functions := map[string]render.Function{}
	for name, kind := range taskKinds() {
		function := render.Function{
			Required: kind.required, Optional: kind.optional, Raw: kind.raw, MakesPods: kind.makesPods,
			Prepare: func(ctx context.Context, d *render.Draft) error { return kind.prepare(tasks, ctx, d) },
		}
		if kind.foretell != nil {
			function.Foretell = func(ctx context.Context, task *render.Task, before []*render.Task) (map[string]any, error) {
				return kind.foretell(tasks, ctx, task, before)
			}
		}
		functions[name] = function
	}
	return functions
}

// Run runs a task until it is done or ctx ends, and gives its outputs. The
// error can hold secrets that are in the args.
func (t *Tasks) Run(ctx context.Context, task *render.Task) (outputs map[string]any, err error) {
	kind, ok := taskKinds()[task.Func]
	if !ok {
		return nil, fmt.Errorf("function %q is no task; tasks are: %s", task.Func, blueprint.List(slices.Collect(maps.Keys(taskKinds()))))
	}
	access, err := t.access(task)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Describe(task), err)
	}
	outputs, err = kind.run(t, ctx, task, access)
	if err != nil {
		if apierrors.IsForbidden(err) && task.ConfinedTo != "" {
			err = fmt.Errorf("%w (a blueprint of namespace %s acts with the rights of its ServiceAccount %s; the option %s names another one)",
				err, task.ConfinedTo, account(task), render.ServiceAccountOption)
		}
		return nil, fmt.Errorf("%s: %w", Describe(task), err)
	}
	return outputs, nil
}

func account(t *render.Task) string {
	if t.ServiceAccount == "" {
		return "default"
	}
	return t.ServiceAccount
}

func (t *Tasks) access(task *render.Task) (*access, error) {
	if task.ConfinedTo == "" {
		return &access{t.clients.Kube, t.clients.Dynamic}, nil
	}
	if wrong := validation.IsDNS1123Subdomain(account(task)); len(wrong) > 0 {
		return nil, fmt.Errorf("option %s is %q, must be the name of a ServiceAccount: %s", render.ServiceAccountOption, account(task), strings.Join(wrong, ", "))
	}
	access, err := t.as("system:serviceaccount:" + task.ConfinedTo + ":" + account(task))
	if err != nil {
		return nil, fmt.Errorf("act as ServiceAccount %s/%s: %w", task.ConfinedTo, account(task), err)
	}
	return access, nil
}

// exists returns an error if a task acts in a namespace that does not exist, and that
// no earlier phase can create.
func (t *Tasks) exists(ctx context.Context, d *render.Draft, namespace string) error {
	if t == nil || t.clients == nil || namespace == "" || namespace == d.Namespace || d.Maker() != "" {
		return nil
	}
	if _, err := t.clients.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return nil // other errors are for the phase itself
	}
	return fmt.Errorf("namespace %q does not exist: write the one of the application, or that of Velero where a command needs the rights of Velero (with podOverride: {serviceAccountName: velero})", namespace)
}

// literal tells that a value has no template in it, at any depth.
func literal(value any) bool {
	switch v := value.(type) {
	case string:
		return !strings.Contains(v, "{{")
	case []any:
		return !slices.ContainsFunc(v, func(element any) bool { return !literal(element) })
	case map[string]any:
		for key, element := range v {
			if !literal(key) || !literal(element) {
				return false
			}
		}
	}
	return true
}

// reference decodes an argument that is an ObjectReference.
func reference(path string, value any) (blueprint.ObjectReference, error) {
	var ref blueprint.ObjectReference
	fields, ok := value.(map[string]any)
	if !ok {
		return ref, fmt.Errorf("%s must be a map of apiVersion, group, resource, name and namespace", path)
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		text, err := render.Scalar(fields[key])
		if err != nil {
			return ref, fmt.Errorf("%s.%s: %w", path, key, err)
		}
		switch key {
		case "apiVersion":
			ref.APIVersion = text
		case "group":
			ref.Group = text
		case "resource":
			ref.Resource = text
		case "kind":
			ref.Kind = text
		case "name":
			ref.Name = text
		case "namespace":
			ref.Namespace = text
		default:
			return ref, fmt.Errorf("%s: unknown key %q; the keys are: apiVersion, group, kind, name, namespace, resource", path, key)
		}
	}
	return ref, nil
}

// wait looks at once and then every pollInterval, until something is done, or
// fails, or ctx ends. state says for the error what has been seen last.
func wait(ctx context.Context, look func(context.Context) (done bool, state string, err error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last := "nothing has been seen"
	for {
		done, state, err := look(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %s", context.Cause(ctx), last)
		case err != nil:
			return err
		case done:
			return nil
		case state != "" && !unsent(state): // what was seen before says more
			last = state
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), last)
		case <-ticker.C:
		}
	}
}

// unsent tells that a request was not sent, since its turn at the client's rate
// limiter would have come after its time was up. That error has no type.
func unsent(state string) bool {
	return strings.Contains(state, "client rate limiter Wait returned an error")
}

// passing tells that an error of the API server may be gone at the next try.
func passing(err error) bool {
	return !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) &&
		!apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) && !apierrors.IsMethodNotSupported(err)
}
