package check

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/decision"
)

// requestsPerSnapshot is how many requests the snapshot controller and the CSI
// sidecar each send for a snapshot until it is cut; docs/benchmarks.md lists them.
const requestsPerSnapshot = 4

// Freeze is a prediction, to which the time of the storage is to be added.
type Freeze struct {
	Snapshots int `json:"snapshots"`
	// Shortest is with components that were idle before, Longest with ones whose
	// burst another freeze has just used up.
	Shortest string `json:"shortest"`
	Longest  string `json:"longest"`
}

// component is a container of a workload.
type component struct {
	namespace, name string
	pod             string // its spec, as JSON
	container       corev1.Container
}

// readComponents lists the containers of all workloads of the cluster.
func (c *Checker) readComponents(ctx context.Context) (found []component, err error) {
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet"} {
		list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			page := &unstructured.UnstructuredList{}
			page.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind(kind + "List"))
			return page, c.clients.Objects.List(ctx, page, crclient.Limit(o.Limit), crclient.Continue(o.Continue))
		}
		err := pager.New(list).EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
			content, err := json.Marshal(object)
			workload := &appsv1.Deployment{} // the pod template of the others is in the same place
			if err == nil {
				err = json.Unmarshal(content, workload)
			}
			pod, _ := json.Marshal(workload.Spec.Template.Spec)
			for _, container := range workload.Spec.Template.Spec.Containers {
				name := fmt.Sprintf("%s %s/%s, container %s", kind, workload.Namespace, workload.Name, container.Name)
				found = append(found, component{workload.Namespace, name, string(pod), container})
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the %ss of all namespaces: %w", kind, err)
		}
	}
	return found, nil
}

// runs reports whether the container runs a program, by its name, command or image.
func (c component) runs(program string) bool {
	image, _, _ := strings.Cut(path.Base(c.container.Image), "@")
	image, _, _ = strings.Cut(image, ":")
	names := []string{c.container.Name, image}
	if len(c.container.Command) > 0 {
		names = append(names, path.Base(c.container.Command[0]))
	}
	return slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, program) })
}

// argument reads an argument as the flag package of Go does.
func (c component) argument(name string, preset float64) (float64, error) {
	line := strings.Join(slices.Concat(c.container.Command, c.container.Args), "\n")
	for _, variable := range c.container.Env {
		line = strings.ReplaceAll(line, "$("+variable.Name+")", variable.Value)
	}
	given := regexp.MustCompile(`(?:^|\s)--?`+name+`[=\s](\S*)`).FindAllStringSubmatch(line, -1)
	if len(given) == 0 {
		return preset, nil
	}
	value := given[len(given)-1][1]
	number, err := strconv.ParseFloat(value, 64)
	if err != nil || number <= 0 {
		return 0, fmt.Errorf("%s has --%s=%s, which is not a positive number", c.name, name, value)
	}
	return number, nil
}

// limits are those of a component on its requests to the API server.
type limits struct {
	component  string
	qps, burst float64
}

// defaultLimits are what the components set themselves (cmd/*/main.go of
// external-snapshotter 8.2).
var defaultLimits = limits{qps: 5, burst: 10}

// cut returns how long the requests for n snapshots take, with a full burst and
// with none left.
func (l limits) cut(n int) (idle, busy time.Duration) {
	requests := float64(n * requestsPerSnapshot)
	seconds := func(n float64) time.Duration {
		return time.Duration(max(0, n) / l.qps * float64(time.Second)).Round(100 * time.Millisecond)
	}
	return seconds(requests - l.burst), seconds(requests)
}

// limitsOf returns the limits of the snapshot controller, or of the CSI sidecar of
// a driver: the one in a pod that names the driver, or else in a namespace where
// another pod names it, such as the pod of the driver on each node.
func limitsOf(all []component, driver string) (lowest limits, err error) {
	program, of := "snapshot-controller", ""
	found := all
	if driver != "" {
		program, of = "csi-snapshotter", " of driver "+driver
		name := regexp.MustCompile(`[^a-zA-Z0-9.-]` + regexp.QuoteMeta(driver) + `[^a-zA-Z0-9.-]`)
		named := slices.DeleteFunc(slices.Clone(all), func(c component) bool { return !name.MatchString(c.pod) })
		found = named
		if !slices.ContainsFunc(named, func(c component) bool { return c.runs(program) }) {
			found = slices.DeleteFunc(slices.Clone(all), func(c component) bool {
				return !slices.ContainsFunc(named, func(n component) bool { return n.namespace == c.namespace })
			})
		}
	}
	for _, c := range found {
		if !c.runs(program) {
			continue
		}
		l := limits{component: c.name}
		if l.qps, err = c.argument("kube-api-qps", defaultLimits.qps); err == nil {
			l.burst, err = c.argument("kube-api-burst", defaultLimits.burst)
		}
		if err != nil {
			return l, err
		}
		if lowest.qps == 0 || l.qps < lowest.qps {
			lowest = l
		}
	}
	if lowest.qps == 0 {
		return lowest, fmt.Errorf("no Deployment, StatefulSet or DaemonSet has the container %s%s", program, of)
	}
	return lowest, nil
}

// limits returns the limits of the snapshot controller, or of the CSI sidecar of a
// driver. Where they cannot be read it says so, and assumes the default.
func (v *visit) limits(ctx context.Context, driver string) limits {
	if v.components == nil {
		v.components = sync.OnceValues(func() ([]component, error) { return v.readComponents(ctx) })
	}
	all, err := v.components()
	if err == nil {
		var l limits
		if l, err = limitsOf(all, driver); err == nil {
			return l
		}
	}
	assumed := defaultLimits
	assumed.component = "the snapshot controller"
	if driver != "" {
		assumed.component = "the CSI sidecar of driver " + driver
	}
	v.report.noteOnce("The request limits of %s are not known, and the default is assumed (--kube-api-qps=%g --kube-api-burst=%g): %v.",
		assumed.component, assumed.qps, assumed.burst, err)
	return assumed
}

// predict tells how long the freeze of a unit lasts by the request limits, and
// warns where that is more than half of the unit's quiesce-timeout.
func (v *visit) predict(ctx context.Context, u *unitReport) {
	counts := map[string]int{} // by driver; "" is the snapshot controller
	for _, volume := range u.volumes {
		if volume.snapshotted() && volume.Volume != nil && volume.Volume.Spec.CSI != nil {
			n := 1
			if volume.Keep.Second && u.path == decision.Group {
				n = 2
			}
			counts[""] += n
			counts[volume.Volume.Spec.CSI.Driver] += n
		}
	}
	if len(counts) == 0 {
		return
	}
	var shortest, longest time.Duration
	if u.path == decision.Around { // which takes one after another
		shortest = time.Duration(counts[""]-1) * v.server.Poll
		longest = shortest
	}
	var slow []string
	for _, driver := range slices.Sorted(maps.Keys(counts)) {
		l := v.limits(ctx, driver)
		idle, busy := l.cut(counts[driver])
		shortest, longest = max(shortest, idle), max(longest, busy)
		if 2*busy > u.plan.QuiesceTimeout {
			slow = append(slow, fmt.Sprintf("%s (%g and %g)", l.component, l.qps, l.burst))
		}
	}
	u.freeze = &Freeze{counts[""], shortest.String(), longest.String()}
	if len(slow) > 0 {
		u.warnings = append(u.warnings, fmt.Sprintf("the freeze is predicted to last %s to %s and the time of the storage, for %s, and %s is %s; raise the arguments --kube-api-qps and --kube-api-burst, for example to 200 and 400, of %s",
			shortest, longest, plural(counts[""], "snapshot"), api.AnnotationQuiesceTimeout, u.plan.QuiesceTimeout, strings.Join(slow, " and of ")))
	}
}
