package quiesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// Reasons of the events on workloads.
const (
	reasonQuiesced    = "Quiesced"
	ReasonThawed      = "Thawed"
	reasonFailed      = "QuiesceFailed"
	ReasonStillFrozen = "StillFrozen"
)

// Reporter reports the course of freezes in the backup's log, where Velero counts errors
// and warnings, and by events on the workloads.
type Reporter struct {
	kube     kubernetes.Interface
	recorder record.EventRecorder
}

// NewReporter returns a Reporter that sends events through kube.
func NewReporter(kube kubernetes.Interface) *Reporter {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	return &Reporter{kube, broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "stillpoint"})}
}

func (r *Reporter) event(u *unit.Unit, eventType, reason, format string, args ...any) {
	for _, ref := range u.Refs() {
		r.recorder.Eventf(&corev1.ObjectReference{
			APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
		}, eventType, reason, format, args...)
	}
}

// stillFrozen reports a workload that may still be frozen, by an error in the log and by
// events. It returns after the events are sent, since Velero may end this process at any
// time.
func (r *Reporter) stillFrozen(ctx context.Context, log logrus.FieldLogger, u *unit.Unit, stuck error) {
	log.Error(stuck)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ThawLimit)
	defer cancel()
	err := each(u.Refs(), func(ref workload.Ref) error {
		return retry.OnError(retry.DefaultBackoff, func(error) bool { return ctx.Err() == nil }, func() error {
			return SendEvent(ctx, r.kube, clock.RealClock{}, ref, corev1.EventTypeWarning, ReasonStillFrozen, stuck.Error())
		})
	})
	if err != nil {
		log.Warnf("The event %s was not sent: %v", ReasonStillFrozen, err)
	}
}

// eventLimit is the maximum length of an event's message in bytes.
const eventLimit = 1024

// SendEvent creates an event for an object, and returns after the API server has it.
func SendEvent(ctx context.Context, kube kubernetes.Interface, clock clock.PassiveClock, ref workload.Ref, eventType, reason, message string) error {
	if len(message) > eventLimit {
		message = strings.ToValidUTF8(message[:eventLimit-3], "") + "..."
	}
	now := metav1.NewTime(clock.Now())
	namespace := cmp.Or(ref.Namespace, metav1.NamespaceDefault)
	_, err := kube.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: ref.Name + "."},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
		},
		Type: eventType, Reason: reason, Message: message,
		Source: corev1.EventSource{Component: "stillpoint"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	return err
}

// Freeze freezes a unit by its plan. It logs a line before the freeze and one after it,
// so that the log shows how far a process got that died.
func (r *Reporter) Freeze(ctx context.Context, tools Tools, plan *Plan, u *unit.Unit, log logrus.FieldLogger, backup string) (*Session, error) {
	names := make([]string, len(u.Claims))
	for i, claim := range u.Claims {
		names[i] = claim.Name
	}
	what := fmt.Sprintf("blueprints %s; volumes %s", strings.Join(plan.Blueprints(), ", "), strings.Join(names, ", "))
	for _, text := range plan.NotFrozen() {
		what += "; " + text
	}
	log.Infof("Quiescing %s: %s", plan.Name, what)
	session, err := Freeze(ctx, tools, plan, log)
	if err != nil {
		return nil, err
	}
	prepared := session.Report().Prepared.Milliseconds()
	log.WithField("prepareMillis", prepared).Infof("Quiesced %s in %d ms: %s", plan.Name, prepared, what)
	r.event(u, corev1.EventTypeNormal, reasonQuiesced, "Quiesced for backup %s", backup)
	return session, nil
}

// Thawed reports the result of a freeze that is over.
func (r *Reporter) Thawed(ctx context.Context, log logrus.FieldLogger, u *unit.Unit, report Report, backup string) {
	frozen := report.Frozen.Milliseconds()
	log = log.WithField("frozenMillis", frozen)
	if report.Stuck != nil {
		r.stillFrozen(ctx, log, u, report.Stuck)
		return
	}
	if report.Broken != nil {
		write := log.Errorf
		if u.OnError == unit.Continue {
			write = log.Warnf
		}
		write("Thawed %s early: frozen for %d ms: %v", u.Name(), frozen, report.Broken)
		r.event(u, corev1.EventTypeWarning, reasonFailed, "Thawed early after %d ms in backup %s: %v", frozen, backup, report.Broken)
		return
	}
	log.Infof("Thawed %s: frozen for %d ms, %s cut", u.Name(), frozen, volumes(len(u.Claims)))
	r.event(u, corev1.EventTypeNormal, ReasonThawed, "Frozen for %d ms for backup %s", frozen, backup)
}

// Failed reports that a unit could not be quiesced. If the error keeps volumes out of the
// backup, the caller logs it.
func (r *Reporter) Failed(ctx context.Context, log logrus.FieldLogger, u *unit.Unit, failed error, backup string) {
	if stuck := (stuckError{}); errors.As(failed, &stuck) {
		r.stillFrozen(ctx, log, u, stuck)
	}
	r.event(u, corev1.EventTypeWarning, reasonFailed, "Backup %s: %v", backup, failed)
	if u.OnError == unit.Continue {
		log.Warnf("Quiesce failed; the snapshots will be crash-consistent only, since %s is continue: %v", api.AnnotationOnQuiesceError, failed)
	}
}

func volumes(n int) string {
	if n == 1 {
		return "1 volume"
	}
	return fmt.Sprintf("%d volumes", n)
}
