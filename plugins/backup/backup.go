// Package backup holds the actions that Velero calls while it backs up. They
// convert and pass on; what is done stands in package bracket.
package backup

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/bracket"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/quiesce"
)

// callLimit bounds one call of Velero's, which brings no context along. It
// leaves room for the longest prepare-timeout of 24 h.
const callLimit = 25 * time.Hour

// Shared is what the actions of one process have in common: a freeze begins in
// one action's call and ends in another's.
type Shared struct {
	csi     func() bool
	once    sync.Once
	bracket *bracket.Bracket
	err     error
}

// NewShared returns a Shared. csi is asked when the first action is made; only
// then Velero's flags are known.
func NewShared(csi func() bool) *Shared { return &Shared{csi: csi} }

func (s *Shared) connect(log logrus.FieldLogger) (*bracket.Bracket, error) {
	s.once.Do(func() {
		clients, err := cluster.NewClients()
		if err != nil {
			s.err = fmt.Errorf("stillpoint: %w", err)
			return
		}
		namespaces := quiesce.NewNamespaces(clients.Kube, clock.RealClock{})
		s.bracket = bracket.New(clients, namespaces, quiesce.NewReporter(clients.Kube), s.csi(), log)
	})
	return s.bracket, s.err
}

// Volume makes the action on PersistentVolumes.
func (s *Shared) Volume(log logrus.FieldLogger) (any, error) {
	b, err := s.connect(log)
	return &volumeAction{b}, err
}

// Claim makes the action on PersistentVolumeClaims.
func (s *Shared) Claim(log logrus.FieldLogger) (any, error) {
	b, err := s.connect(log)
	return &claimAction{b}, err
}

// Pods makes the action that keeps a workload's pods together.
func (s *Shared) Pods(log logrus.FieldLogger) (any, error) {
	b, err := s.connect(log)
	return &podsAction{b}, err
}

type volumeAction struct{ bracket *bracket.Bracket }

func (*volumeAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumes"}}, nil
}

// Execute freezes; the next thing Velero does is the snapshot.
func (a *volumeAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, error) {
	volume := &corev1.PersistentVolume{}
	if err := convert(item, volume); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.bracket.Volume(ctx, volume, backup); err != nil {
		return nil, nil, err
	}
	return item, nil, nil
}

type claimAction struct{ bracket *bracket.Bracket }

func (*claimAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

// Execute hears that a volume has its snapshot.
func (a *claimAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := convert(item, claim); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.bracket.Claim(ctx, claim, backup); err != nil {
		return nil, nil, err
	}
	return item, nil, nil
}

type podsAction struct{ bracket *bracket.Bracket }

// Name is not called through the plugin protocol; Velero uses the registered one.
func (*podsAction) Name() string { return "stillpoint.io/quiesce-pods" }

func (*podsAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"pods"}}, nil
}

// GetRelatedItems names the other pods of the workload.
func (a *podsAction) GetRelatedItems(item runtime.Unstructured, backup *velerov1.Backup) ([]velero.ResourceIdentifier, error) {
	pod := &corev1.Pod{}
	if err := convert(item, pod); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return a.bracket.Related(ctx, pod, backup), nil
}

func convert(item runtime.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), into); err != nil {
		return fmt.Errorf("stillpoint: read the item that Velero passed: %w", err)
	}
	return nil
}
