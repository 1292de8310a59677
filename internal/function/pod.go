package function

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/ptr"
	kjson "sigs.k8s.io/json"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// Names in the pods of tasks. They are Kanister's, because a podOverride refers to
// containers by name.
const (
	multiContainerRun   = "MultiContainerRun"
	podPrefix           = "kanister-job-"
	taskContainer       = "container"
	initContainer       = "init"
	backgroundContainer = "background"
	outputContainer     = "output"
	sharedVolume        = "shared"
	sharedDirectory     = "/tmp/"
)

const (
	// podGrace is how much longer than its task a pod may live if the plugin is gone
	// and cannot delete it.
	podGrace = time.Minute
	// removeLimit is how long deleting a pod may take.
	removeLimit = 30 * time.Second
	// An error shows at most shownLines and, after masking, shownBytes of a pod's log;
	// readBytes limits what is read for that.
	shownLines = int64(10)
	shownBytes = 2048
	readBytes  = int64(1 << 20)
)

// podOf makes the pod of KubeTask or MultiContainerRun. Its default namespace is the
// annotated object's: Kanister's is that of its controller, which would be Velero's
// here, where nothing of a user's belongs.
func podOf(task *render.Task) (*corev1.Pod, error) {
	namespace, err := task.TargetNamespace()
	if err != nil {
		return nil, err
	}
	r := task.Args.Reader()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Labels: r.Texts("podLabels"), Annotations: r.Texts("podAnnotations")}}
	var spec *corev1.PodSpec
	if task.Func == multiContainerRun {
		spec = multiContainerPod(r)
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "kubectl.kubernetes.io/default-container", outputContainer)
	} else {
		main := corev1.Container{Name: taskContainer, Image: r.Required("image"), Command: r.Command("command"), ImagePullPolicy: corev1.PullIfNotPresent}
		spec = &corev1.PodSpec{Containers: []corev1.Container{main}}
	}
	if r.Err != nil {
		return nil, r.Err
	}
	main := spec.Containers[0].Name
	spec.RestartPolicy = corev1.RestartPolicyNever
	if spec, _, err = override(spec, task.Args["podOverride"]); err != nil {
		return nil, fmt.Errorf("args.podOverride: %w", err)
	}
	// The container whose log is the output remains the first.
	if i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == main }); i > 0 {
		spec.Containers = slices.Concat(spec.Containers[i:i+1], spec.Containers[:i], spec.Containers[i+1:])
	}
	pod.Spec = *spec
	metav1.SetMetaDataLabel(&pod.ObjectMeta, "createdBy", "kanister")
	if task.Owner != "" {
		metav1.SetMetaDataLabel(&pod.ObjectMeta, api.LabelTask, task.Owner)
	}
	// The backup that the pod works for must not contain it.
	metav1.SetMetaDataLabel(&pod.ObjectMeta, "velero.io/exclude-from-backup", "true")
	return pod, nil
}

func multiContainerPod(r *render.Reader) *corev1.PodSpec {
	directory := cmp.Or(r.String("sharedVolumeDir"), sharedDirectory)
	shared := &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMedium(r.String("sharedVolumeMedium"))}
	if limit := r.String("sharedVolumeSizeLimit"); limit != "" {
		quantity, err := resource.ParseQuantity(limit)
		if err != nil {
			r.Check(fmt.Errorf("args.sharedVolumeSizeLimit is %q, must be a quantity such as 1Gi: %w", limit, err))
		}
		shared.SizeLimit = &quantity
	}
	container := func(name string) corev1.Container {
		return corev1.Container{
			Name: name, Image: r.Required(name + "Image"), Command: r.Command(name + "Command"),
			VolumeMounts: []corev1.VolumeMount{{Name: sharedVolume, MountPath: directory}},
		}
	}
	spec := &corev1.PodSpec{
		Volumes:    []corev1.Volume{{Name: sharedVolume, VolumeSource: corev1.VolumeSource{EmptyDir: shared}}},
		Containers: []corev1.Container{container(outputContainer), container(backgroundContainer)},
	}
	if r.Args[initContainer+"Image"] != nil || r.Args[initContainer+"Command"] != nil {
		spec.InitContainers = []corev1.Container{container(initContainer)}
	}
	return spec
}

// override merges a podOverride into the spec of a pod, as the API server
// merges a strategic patch. It drops fields that the spec of a pod does not have,
// because Kanister does so and published blueprints have some.
func override(spec *corev1.PodSpec, patch any) (merged *corev1.PodSpec, unknown []error, err error) {
	if patch == nil {
		return spec, nil, nil
	}
	if _, ok := patch.(map[string]any); !ok {
		return nil, nil, errors.New("must be a map, as the spec of a pod is one")
	}
	plain, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	changes, err := json.Marshal(patch)
	if err != nil {
		return nil, nil, err
	}
	both, err := strategicpatch.StrategicMergePatch(plain, changes, corev1.PodSpec{})
	if err != nil {
		return nil, nil, err
	}
	merged = &corev1.PodSpec{}
	unknown, err = kjson.UnmarshalStrict(both, merged)
	if err != nil {
		return nil, nil, fmt.Errorf("does not make the spec of a pod: %w", err)
	}
	if len(merged.Containers) == 0 {
		return nil, nil, errors.New("leaves no container")
	}
	return merged, unknown, nil
}

// preparePod checks the pod's spec, namespace and ServiceAccount.
func (t *Tasks) preparePod(ctx context.Context, d *render.Draft) error {
	pod, err := podOf(d.Task)
	if err != nil {
		return err
	}
	if t.Warn != nil {
		_, unknown, _ := override(&corev1.PodSpec{Containers: []corev1.Container{{}}}, d.Args["podOverride"])
		for _, each := range unknown {
			t.Warn("Action %s, function %s: args.podOverride: %s is ignored", d.Action(), d.Func, d.Mask(each.Error()))
		}
	}
	if err := d.AllowNamespace(); err != nil {
		return err
	}
	if err := t.exists(ctx, d, pod.Namespace); err != nil {
		return err
	}
	account := pod.Spec.ServiceAccountName
	if account == "" || t.clients == nil || d.Maker() != "" {
		return nil
	}
	if _, err := t.clients.Kube.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, account, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return fmt.Errorf("args.podOverride: serviceAccountName %q: namespace %s has no such ServiceAccount", account, pod.Namespace)
	}
	return nil
}

func describePod(task *render.Task) string {
	pod, err := podOf(task)
	if err != nil {
		return ""
	}
	container := pod.Spec.Containers[0]
	return fmt.Sprintf("runs %q in a pod of image %s in namespace %s", container.Command, container.Image, pod.Namespace)
}

// runPod runs a pod to its end, and parses its log.
func (t *Tasks) runPod(ctx context.Context, task *render.Task, access *access) (map[string]any, error) {
	pod, err := podOf(task)
	if err != nil {
		return nil, err
	}
	if err := task.Within(pod.Namespace); err != nil {
		return nil, err
	}
	own := []string{taskContainer}
	if task.Func == multiContainerRun {
		own = []string{outputContainer, backgroundContainer}
	}
	var settings config.HelperPods
	if t.Pods != nil {
		settings = t.Pods(ctx)
	}
	if err := fillDefaults(&pod.Spec, settings); err != nil {
		return nil, err
	}
	// A name chosen here lets remove delete the pod even if the answer of the API
	// server is lost.
	pod.Name = podPrefix + rand.String(8)
	if limit, ok := ctx.Deadline(); ok && pod.Spec.ActiveDeadlineSeconds == nil {
		seconds := int64(max(time.Until(limit)+podGrace, time.Second).Seconds())
		pod.Spec.ActiveDeadlineSeconds = &seconds
	}
	title := fmt.Sprintf("pod %s/%s", pod.Namespace, pod.Name)
	pods := access.kube.CoreV1().Pods(pod.Namespace)
	created, err := pods.Create(ctx, pod, metav1.CreateOptions{FieldManager: fieldManager})
	if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "runAsNonRoot != true") {
		// The namespace refuses pods that may run as root.
		settings.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: ptr.To(true)}
		if err := fillDefaults(&pod.Spec, settings); err != nil {
			return nil, err
		}
		created, err = pods.Create(ctx, pod, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err == nil || passing(err) {
		defer t.remove(ctx, access, pod, title)
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", title, err)
	}
	pod = created
	err = poll(ctx, func(ctx context.Context) (bool, string, error) {
		seen, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return retry(err)
		}
		pod = seen
		done, err := over(pod, own)
		return done, stateOf(pod), err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w%s", title, err, t.lastWords(ctx, access, task, pod, own[0]))
	}
	log, err := pods.GetLogs(pod.Name, &corev1.PodLogOptions{Container: own[0]}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", title, err)
	}
	defer log.Close() //nolint:errcheck // it was read only
	outputs, err := podexec.ParseOutputs(log)
	if err != nil {
		return nil, fmt.Errorf("the log of %s: %w", title, err)
	}
	return outputs, nil
}

// remove deletes a pod, even after ctx has ended. The pod gets no time, because its
// command no longer matters.
func (t *Tasks) remove(ctx context.Context, access *access, pod *corev1.Pod, title string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) (bool, string, error) {
		err := access.kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(1))})
		if err == nil || apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return retry(err)
	})
	if err != nil && t.Warn != nil {
		t.Warn("Could not delete helper %s: %v", title, err)
	}
}

// stateOf returns in one line what a pod waits for, or why it failed.
func stateOf(pod *corev1.Pod) string {
	parts := []string{string(pod.Status.Phase)}
	if pod.Status.Phase == "" {
		parts[0] = string(corev1.PodPending)
	}
	if pod.Status.Reason != "" || pod.Status.Message != "" {
		parts = append(parts, strings.TrimSpace(pod.Status.Reason+" "+pod.Status.Message))
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			parts = append(parts, strings.TrimSpace(condition.Reason+" "+condition.Message))
		}
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case status.State.Waiting != nil && status.State.Waiting.Reason != "" && status.State.Waiting.Reason != "PodInitializing":
			parts = append(parts, fmt.Sprintf("container %s waits: %s", status.Name, strings.TrimSpace(status.State.Waiting.Reason+" "+status.State.Waiting.Message)))
		case status.State.Terminated != nil && status.State.Terminated.ExitCode != 0:
			ended := status.State.Terminated
			parts = append(parts, fmt.Sprintf("container %s ended with code %d (%s)", status.Name, ended.ExitCode, strings.TrimSpace(ended.Reason+" "+ended.Message)))
		}
	}
	return strings.Join(parts, "; ")
}

// over reports whether the containers that the task gave a pod have ended; an injected
// one, such as the proxy of a service mesh, may run on. The error means the task failed.
func over(pod *corev1.Pod, own []string) (done bool, err error) {
	running := len(own)
	for _, status := range pod.Status.ContainerStatuses {
		ended := status.State.Terminated
		switch {
		case ended == nil || !slices.Contains(own, status.Name):
		case ended.ExitCode == 0:
			running--
		case pod.Spec.RestartPolicy == corev1.RestartPolicyNever:
			return false, errors.New("its container failed: " + stateOf(pod))
		}
	}
	switch {
	case running == 0, pod.Status.Phase == corev1.PodSucceeded:
		return true, nil
	case pod.Status.Phase == corev1.PodFailed:
		return false, errors.New("it failed: " + stateOf(pod))
	}
	return false, hopeless(pod)
}

// hopeless returns an error if a pod waits for something that cannot happen.
func hopeless(pod *corev1.Pod) error {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		waiting := status.State.Waiting
		switch {
		case waiting == nil:
		case slices.Contains([]string{"InvalidImageName", "ErrImageNeverPull"}, waiting.Reason):
			return errors.New(stateOf(pod))
		case strings.Contains(waiting.Message, "runAsNonRoot"):
			return fmt.Errorf("%s; runAsUser chooses another user, in podOverride or in helperPods.securityContext of the configuration", stateOf(pod))
		}
	}
	return nil
}

// lastWords returns the last lines in the log of the container that failed, or else of
// the given one, to be appended to an error.
func (t *Tasks) lastWords(ctx context.Context, access *access, task *render.Task, pod *corev1.Pod, container string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if ended := status.State.Terminated; ended != nil && ended.ExitCode != 0 {
			container = status.Name
			break
		}
	}
	lines, bytes := shownLines, readBytes
	log, err := access.kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: container, TailLines: &lines, LimitBytes: &bytes,
	}).Stream(ctx)
	if err != nil {
		return "" // such as of a container that has not started
	}
	defer log.Close() //nolint:errcheck // it was read only
	said, err := io.ReadAll(log)
	if err != nil || int64(len(said)) == readBytes { // the end is missing
		return ""
	}
	show := task.Show
	if show == nil {
		show = func(said string, cut bool) string { return render.Masker{}.Tail(said, shownBytes, cut) }
	}
	text := show(string(said), int64(strings.Count(string(said), "\n")) >= shownLines)
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; the end of its log: %s", text)
}
