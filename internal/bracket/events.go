package bracket

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"stillpoint.io/stillpoint/internal/workload"
)

// Reasons of the events on workloads.
const (
	reasonQuiesced    = "Quiesced"
	reasonThawed      = "Thawed"
	reasonFailed      = "QuiesceFailed"
	reasonStillFrozen = "StillFrozen"
)

// events writes Kubernetes events on the workloads of a freeze.
type events struct{ recorder record.EventRecorder }

func newEvents(kube kubernetes.Interface) *events {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	return &events{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "stillpoint"})}
}

func (e *events) write(on []workload.Ref, eventType, reason, format string, args ...any) {
	for _, ref := range on {
		e.recorder.Eventf(&corev1.ObjectReference{
			APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
		}, eventType, reason, format, args...)
	}
}
