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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/render"
)

// pollInterval is how often a task checks whether something has happened.
const pollInterval = 500 * time.Millisecond

// Describe says what a task does, for people. The text can hold secrets.
func Describe(task *render.Task) string {
	if kind, ok := kinds()[task.Func]; ok {
		if text := kind.describe(task); text != "" {
			return task.Func + " " + text
		}
	}
	return task.Func
}

// Ends reports whether a task scales a workload to 0 and waits until its pods have
// ended.
func Ends(task *render.Task, kind, namespace, name string) bool {
	if task.Func != scaleWorkload {
		return false
	}
	s, err := scalingOf(task)
	return err == nil && s.replicas == 0 && s.wait && s.kind == kind && s.namespace == namespace && s.name == name
}

// Changes reports whether a task scales, patches or deletes an object.
func Changes(task *render.Task, namespace, apiVersion, kind, name string) bool {
	switch task.Func {
	case scaleWorkload:
		s, err := scalingOf(task)
		return err == nil && s.namespace == namespace && s.kind == kind && s.name == name
	case "KubeOps":
		ref, err := reference("args.objectReference", task.Args["objectReference"])
		verb, _ := task.Args.String("operation")
		if err != nil || verb == "create" || ref.Name != name {
			return false
		}
		in, _ := task.Args.String("namespace") // prepareOperation has filled it in
		gvk := schema.FromAPIVersionAndKind(apiVersion, kind)
		resource, _ := meta.UnsafeGuessKindToResource(gvk)
		return cmp.Or(ref.Namespace, in) == namespace && ref.Group == gvk.Group && ref.Resource == resource.Resource
	}
	return false
}

// kind is a function that acts through the API server.
type kind struct {
	render.Function // without Prepare and Foretell
	prepare         func(*Tasks, context.Context, *render.Draft) error
	run             func(*Tasks, context.Context, *render.Task, *access) (map[string]any, error)
	foretell        func(*Tasks, context.Context, *render.Task, []*render.Task) (map[string]any, error)
	describe        func(*render.Task) string
}

var kinds = sync.OnceValue(func() map[string]kind {
	podArguments := []string{"namespace", "podOverride", "podAnnotations", "podLabels"}
	waiting := kind{
		Function: render.Function{Required: []string{"timeout", "conditions"}, Raw: true},
		prepare:  (*Tasks).prepareWait, run: (*Tasks).await, describe: describeWait,
	}
	return map[string]kind{
		"KubeTask": {
			// The command may be kubectl.
			Function: render.Function{Required: []string{"image", "command"}, Optional: podArguments, MakesPods: true},
			prepare:  (*Tasks).preparePod, run: (*Tasks).runPod, describe: describePod,
		},
		multiContainerRun: {
			Function: render.Function{
				Required:  []string{"backgroundImage", "backgroundCommand", "outputImage", "outputCommand"},
				Optional:  slices.Concat(podArguments, []string{"initImage", "initCommand", "sharedVolumeMedium", "sharedVolumeSizeLimit", "sharedVolumeDir"}),
				MakesPods: true,
			},
			prepare: (*Tasks).preparePod, run: (*Tasks).runPod, describe: describePod,
		},
		"KubeOps": {
			Function: render.Function{Required: []string{"operation"}, Optional: []string{"spec", "objectReference", "namespace"}, Raw: true, MakesPods: true},
			prepare:  (*Tasks).prepareOperation, run: (*Tasks).operate, describe: describeOperation,
		},
		scaleWorkload: {
			Function: render.Function{Required: []string{"replicas"}, Optional: []string{"namespace", "name", "kind", "waitForReady"}, MakesPods: true},
			prepare:  (*Tasks).prepareScaling, run: (*Tasks).scale, foretell: (*Tasks).foretellScaling, describe: describeScaling,
		},
		render.WaitFunction:   waiting,
		render.WaitV2Function: waiting,
	}
})

// Tasks runs tasks.
type Tasks struct {
	// Warn reports problems that are no errors; nil drops them.
	Warn func(format string, args ...any)

	// Pods returns the configured defaults of pods; nil means no configuration.
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
		return &access{kube, objects}, err
	}
	return t
}

// TaskFunctions are Kanister's functions that act through the API server.
func TaskFunctions(tasks *Tasks) map[string]render.Function {
	functions := map[string]render.Function{}
	for name, kind := range kinds() {
		function := kind.Function
		function.Prepare = func(ctx context.Context, d *render.Draft) error { return kind.prepare(tasks, ctx, d) }
		if kind.foretell != nil {
			function.Foretell = func(ctx context.Context, task *render.Task, before []*render.Task) (map[string]any, error) {
				return kind.foretell(tasks, ctx, task, before)
			}
		}
		functions[name] = function
	}
	return functions
}

// Run runs a task until it is done or ctx ends, and returns its outputs. The error can
// hold secrets that are in the args.
func (t *Tasks) Run(ctx context.Context, task *render.Task) (outputs map[string]any, err error) {
	kind, ok := kinds()[task.Func]
	if !ok {
		return nil, fmt.Errorf("function %q is no task; tasks are: %s", task.Func, blueprint.List(slices.Collect(maps.Keys(kinds()))))
	}
	access, err := t.access(task)
	if err == nil {
		outputs, err = kind.run(t, ctx, task, access)
	}
	if apierrors.IsForbidden(err) && task.ConfinedTo != "" {
		err = fmt.Errorf("%w (a blueprint of namespace %s acts with the rights of its ServiceAccount %s; the option %s names another one)",
			err, task.ConfinedTo, account(task), render.ServiceAccountOption)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Describe(task), err)
	}
	return outputs, nil
}

// account is the ServiceAccount with whose rights a confined task acts.
func account(task *render.Task) string { return cmp.Or(task.ServiceAccount, "default") }

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

// exists returns an error if a task acts in a namespace that does not exist and that
// no earlier phase can create.
func (t *Tasks) exists(ctx context.Context, d *render.Draft, namespace string) error {
	if t.clients == nil || namespace == "" || namespace == d.Namespace || d.Maker() != "" {
		return nil
	}
	if _, err := t.clients.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return nil // the phase itself reports other errors
	}
	return fmt.Errorf("namespace %q does not exist: write the one of the application, or that of Velero where a command needs the rights of Velero (with podOverride: {serviceAccountName: velero})", namespace)
}

// literal reports whether a value has no template in it, at any depth.
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
func reference(path string, value any) (ref blueprint.ObjectReference, err error) {
	given, ok := value.(map[string]any)
	if !ok {
		return ref, fmt.Errorf("%s must be a map of apiVersion, group, resource, name and namespace", path)
	}
	fields := ref.Fields()
	for _, key := range slices.Sorted(maps.Keys(given)) {
		field, ok := fields[key]
		if !ok {
			return ref, fmt.Errorf("%s: unknown key %q; the keys are: %s", path, key, blueprint.List(slices.Collect(maps.Keys(fields))))
		}
		if *field, err = render.Scalar(path+"."+key, given[key]); err != nil {
			return ref, err
		}
	}
	return ref, nil
}

// outputs are the fields of a reference, which are the outputs of KubeOps.
func outputs(ref blueprint.ObjectReference) map[string]any {
	fields, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(&ref) // strings only
	return fields
}

// poll calls look at once and then every pollInterval, until it reports done, returns
// an error, or ctx ends. state is what look has seen, for the error.
func poll(ctx context.Context, look func(context.Context) (done bool, state string, err error)) error {
	last := "nothing has been seen"
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		done, state, err := look(ctx)
		// The client returns an untyped error if the rate limiter would let a request
		// through only after ctx ends: the state before says more.
		if state != "" && ctx.Err() == nil && !strings.Contains(state, "client rate limiter Wait returned an error") {
			last = state
		}
		return done && ctx.Err() == nil, err
	})
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %s", context.Cause(ctx), last)
	}
	return err
}

// retry is what look returns to poll after an error of the API server.
func retry(err error) (done bool, state string, final error) {
	if passing(err) {
		return false, err.Error(), nil
	}
	return false, "", err
}

// passing reports whether a request may succeed when it is tried again.
func passing(err error) bool {
	return !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) &&
		!apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) && !apierrors.IsMethodNotSupported(err)
}
