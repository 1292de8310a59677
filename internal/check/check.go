// Package check tells what a backup would do, without doing it: which volumes
// it would snapshot, how, with which class, what it would run before and after,
// and what would fail. It asks the code that backs up, and changes nothing; in
// containers it runs the probes that planning a freeze takes.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/velero"
	"stillpoint.io/stillpoint/internal/workload"
)

// Options say which backup is checked, and how much of it.
type Options struct {
	// Namespaces are those to look at; none are all that the backup includes.
	Namespaces []string
	// Kind and Name are a workload's or another annotated object's, in the only
	// one of Namespaces; "" is all.
	Kind, Name string

	// Schedule is one whose next backup is checked. Without it a Backup of
	// Namespaces is, with what else is set here.
	Schedule string
	// VolumePolicies is the name of a ConfigMap, "" for none.
	VolumePolicies      string
	SnapshotMoveData    *bool
	Labels, Annotations map[string]string

	// Deployment is the name of the Velero server's.
	Deployment string
	// ServerArgs stand in for its arguments where it cannot be read.
	ServerArgs []string
}

// Checker checks backups of one cluster.
type Checker struct {
	clients  *cluster.Clients
	executor podexec.Executor
	clock    clock.PassiveClock
	forget   func(namespace string)
}

// New returns a Checker. forget is told of each namespace that nothing more
// will be asked about.
func New(clients *cluster.Clients, executor podexec.Executor, clock clock.PassiveClock, forget func(namespace string)) *Checker {
	return &Checker{clients: clients, executor: executor, clock: clock, forget: forget}
}

// visit is one check.
type visit struct {
	*Checker
	options    Options
	server     velero.Server
	backup     *velerov1.Backup
	namespaces *unit.Namespaces
	decisions  *decision.Backup
	report     *Report
	// components are the containers of the cluster, read when they are asked for.
	components func() ([]component, error)
}

// Check reports what a backup would do. An error says that this is not known:
// the cluster cannot be read, or has nothing of what is asked for.
func (c *Checker) Check(ctx context.Context, options Options) (*Report, error) {
	v := &visit{Checker: c, options: options}
	var err error
	if v.server, err = c.server(ctx, options); err != nil {
		return nil, err
	}
	if v.backup, err = c.backup(ctx, options, v.server); err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	v.namespaces = unit.NewNamespaces(c.clients, c.clock, log)
	v.decisions = decision.New(c.clients, v.namespaces, decision.Server{CSI: v.server.CSI, Poll: v.server.Poll}, c.clock).For(v.backup)
	v.report = newReport(v.server, v.backup, options)

	if _, err := v.decisions.Settings(ctx); err != nil {
		if unreadable(err) {
			return nil, err
		}
		v.report.fail("the configuration: %v", err)
	}
	if err := v.decisions.Policies(ctx); err != nil {
		if unreadable(err) {
			return nil, err
		}
		v.report.fail("Velero refuses the whole backup: %v", err)
		return v.report, nil
	}
	names, err := v.names(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := v.namespace(ctx, name); err != nil {
			return nil, err
		}
		c.forget(name)
	}
	v.report.unread(v.namespaces.Unread())
	return v.report.finish(), nil
}

// server reads the flags of the Velero server.
func (c *Checker) server(ctx context.Context, options Options) (velero.Server, error) {
	if len(options.ServerArgs) > 0 {
		return velero.ServerOf(options.ServerArgs)
	}
	deployment, err := c.clients.Kube.AppsV1().Deployments(c.clients.VeleroNamespace).Get(ctx, options.Deployment, metav1.GetOptions{})
	if err != nil {
		return velero.Server{}, fmt.Errorf("read the Velero server's Deployment: %w; name it by --velero-namespace and --velero-deployment, or say the server's flags by --server-args", err)
	}
	return velero.ReadServer(deployment)
}

// backup makes the Backup that is checked.
func (c *Checker) backup(ctx context.Context, options Options, server velero.Server) (*velerov1.Backup, error) {
	backup := &velerov1.Backup{}
	backup.Namespace, backup.Name = c.clients.VeleroNamespace, "check"
	backup.Labels, backup.Annotations = maps.Clone(options.Labels), maps.Clone(options.Annotations)
	backup.Spec.IncludedNamespaces = options.Namespaces
	backup.Spec.SnapshotMoveData = options.SnapshotMoveData
	if options.VolumePolicies != "" {
		backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: options.VolumePolicies}
	}
	if options.Schedule != "" {
		schedule := &velerov1.Schedule{}
		key := crclient.ObjectKey{Namespace: c.clients.VeleroNamespace, Name: options.Schedule}
		if err := c.clients.Objects.Get(ctx, key, schedule); err != nil {
			return nil, fmt.Errorf("get Schedule %s: %w", key, err)
		}
		backup = velero.BackupOf(schedule)
	}
	marked, err := c.clients.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: velerov1.ExcludeFromBackupLabel + "=true"})
	if err != nil {
		return nil, fmt.Errorf("list the namespaces with label %s: %w", velerov1.ExcludeFromBackupLabel, err)
	}
	var left []string
	for _, namespace := range marked.Items {
		left = append(left, namespace.Name)
	}
	backup = server.Complete(backup, left)
	backup.UID = types.UID("check")
	backup.Status.StartTimestamp = &metav1.Time{Time: c.clock.Now()}
	return backup, nil
}

// names are the namespaces to look at.
func (v *visit) names(ctx context.Context) ([]string, error) {
	if len(v.options.Namespaces) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(v.options.Namespaces))), nil
	}
	claims := &metav1.PartialObjectMetadataList{}
	claims.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaimList"))
	found := map[string]bool{}
	for {
		err := v.clients.Objects.List(ctx, claims, crclient.Limit(claimsPage), crclient.Continue(claims.Continue))
		if err != nil {
			return nil, fmt.Errorf("list the claims of all namespaces: %w", err)
		}
		for _, claim := range claims.Items {
			if v.decisions.Namespace(claim.Namespace) {
				found[claim.Namespace] = true
			}
		}
		if claims.Continue == "" {
			return slices.Sorted(maps.Keys(found)), nil
		}
	}
}

// claimsPage is how many claims one answer holds.
const claimsPage = 500

// namespace reports on the claims of one namespace.
func (v *visit) namespace(ctx context.Context, name string) error {
	facts, err := v.namespaces.Recent(ctx, name)
	if err != nil {
		return err
	}
	if unread := facts.Unread(); unread != nil {
		v.report.Warnings = append(v.report.Warnings, fmt.Sprintf("Quiesce annotations of workloads in namespace %s cannot be looked for: %v", name, unread))
	}
	if len(facts.Claims()) == 0 {
		v.report.note("Namespace %s has no claims: there is nothing to snapshot.", name)
	}
	seen := map[string]bool{}
	var known []string
	asked, matched := false, false
	for i := range facts.Claims() {
		claim := &facts.Claims()[i]
		if seen[claim.Name] {
			continue
		}
		whole, err := facts.Unit(claim)
		if err == nil {
			facts.LimitToHookBlock(whole, v.backup)
		}
		for _, w := range whole.Component.Workloads {
			known = append(known, strings.ToLower(w.Kind)+"/"+w.Name)
		}
		for _, o := range whole.AnnotatedObjects() {
			known = append(known, strings.ToLower(o.Kind)+"/"+o.Name)
		}
		for _, member := range whole.Claims {
			seen[member.Name] = true
		}
		asked = asked || err != nil || whole.Quiesced()
		if !v.options.covers(whole) {
			continue
		}
		matched = true
		reported, err := v.unit(ctx, whole, err)
		if err != nil {
			return err
		}
		v.report.add(reported.report())
	}
	for _, idle := range facts.Idle() {
		switch {
		case v.options.Name == "" && idle.Warning:
			v.report.Warnings = append(v.report.Warnings, idle.Text)
		case v.options.Name == "":
			v.report.note("%s", idle.Text)
		case v.options.means(idle.Ref, idle.Is):
			return errors.New(idle.Text)
		}
	}
	switch {
	case v.options.Name != "" && !matched:
		slices.Sort(known)
		return fmt.Errorf("namespace %s has no workload %s/%s with a volume in a running pod, nor such an object with quiesce annotations; there are: %s",
			name, v.options.Kind, v.options.Name, orNone(slices.Compact(known)))
	case len(facts.Claims()) > 0 && !asked:
		v.report.note("Nothing is quiesced in namespace %s: none of its claims, and nothing that stands for them, has an annotation %s or %s, nor has the namespace.",
			name, api.AnnotationQuiesce, api.AnnotationKanister)
	}
	return nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// covers tells whether a group is to be reported.
func (o Options) covers(whole *unit.Unit) bool {
	if o.Name == "" {
		return true
	}
	for _, w := range whole.Component.Workloads {
		if o.means(w.Ref, func(string) bool { return false }) {
			return true
		}
	}
	for _, s := range whole.AnnotatedObjects() {
		if o.means(s.Ref, s.Is) {
			return true
		}
	}
	return false
}

// means tells whether an object is the only one to look at. is knows other
// names of its kind.
func (o Options) means(ref workload.Ref, is func(kind string) bool) bool {
	return ref.Name == o.Name && (strings.EqualFold(ref.Kind, o.Kind) || is(o.Kind))
}

// unit gathers what would become of the claims of a group. invalid is what is
// wrong with its annotations.
func (v *visit) unit(ctx context.Context, whole *unit.Unit, invalid error) (*unitReport, error) {
	u := &unitReport{whole: whole, asked: invalid != nil || whole.Quiesced(), cause: invalid}
	for i := range whole.Claims {
		volume, err := v.volume(ctx, &whole.Claims[i])
		if err != nil {
			return nil, err
		}
		u.volumes = append(u.volumes, volume)
	}
	if !u.asked {
		return u, nil
	}
	var planner *quiesce.Planner
	settings, faulty := v.decisions.Settings(ctx)
	if faulty == nil {
		planner = quiesce.NewPlanner(settings, v.clients, v.executor, func(format string, args ...any) {
			u.warnings = append(u.warnings, fmt.Sprintf(format, args...))
		})
		u.sources = sources(ctx, planner.Finder, whole.Requests())
	}
	// The first claim that Velero's calls come to decides for the others.
	i := slices.IndexFunc(u.volumes, func(volume volume) bool { return volume.snapshotted() })
	if i < 0 {
		return u, nil
	}
	decided, err := v.decisions.Unit(ctx, u.volumes[i].Decision)
	if err != nil {
		return nil, err
	}
	u.path = decided.Path
	switch {
	case decided.Refusal != nil && !ofMember(decided):
		u.cause = decided.Refusal
	case !decided.Quiesced(): // the annotations are gone since
	case faulty != nil:
		u.cause = faulty
	default:
		if u.plan, u.cause = planner.Plan(ctx, decided.Quiesce, v.backup); u.cause == nil {
			u.cause = decided.Outlasts(u.plan.QuiesceTimeout)
		}
		if u.cause == nil {
			v.predict(ctx, u)
		}
	}
	for _, finding := range decided.Findings() {
		u.warnings = append(u.warnings, finding.Text)
	}
	return u, nil
}

// ofMember reports whether one claim alone is why a unit is refused; the plan can be
// made all the same.
func ofMember(unit *decision.Unit) bool {
	return slices.ContainsFunc(unit.Quiesce.Claims, func(claim corev1.PersistentVolumeClaim) bool {
		d := unit.Of(claim.Name)
		return d != nil && errors.Is(unit.Refusal, d.Refusal)
	})
}

// sources says where blueprints come from; those that are not found are left
// out.
func sources(ctx context.Context, finder *blueprint.Finder, asks []unit.Request) map[string]string {
	found := map[string]string{}
	for _, ask := range asks {
		for _, name := range ask.Blueprints {
			if blueprint, err := finder.Find(ctx, name, ask.Workload.Namespace); err == nil {
				found[name] = string(blueprint.Source)
			}
		}
	}
	return found
}

// volume decides on one claim.
func (v *visit) volume(ctx context.Context, claim *corev1.PersistentVolumeClaim) (volume, error) {
	decided, err := v.decisions.Expected(ctx, claim)
	if err != nil && unreadable(err) {
		return volume{}, err
	}
	if err != nil {
		decided = &decision.Decision{Claim: claim, Path: decision.None, Reason: err.Error()}
	}
	return volume{decided, err}, nil
}

// unreadable tells an API server that cannot be asked from an answer that a
// backup would get, too.
func unreadable(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return !apierrors.IsNotFound(err)
	}
	var request *url.Error
	var network net.Error
	return errors.As(err, &request) || errors.As(err, &network) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
