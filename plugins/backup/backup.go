// Package backup holds the actions that Velero calls during a backup. They convert
// Velero's types, get a decision from package decision, and pass it on to its executor:
// package group, around or location.
package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/around"
	"stillpoint.io/stillpoint/internal/cleanup"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/group"
	"stillpoint.io/stillpoint/internal/location/csi"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/internal/quiesce"
	"stillpoint.io/stillpoint/internal/recovery"
	"stillpoint.io/stillpoint/internal/restore"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/upload"
	velerofacts "stillpoint.io/stillpoint/internal/velero"
	"stillpoint.io/stillpoint/plugins/snapshotter"
)

// callLimit limits one call of Velero, which passes no context. It exceeds the longest
// prepare-timeout of 24 h.
const callLimit = 25 * time.Hour

// askLimit limits a call about an operation. Velero asks for one operation after
// another.
const askLimit = time.Minute

// Shared is the state that the actions of one process share: a freeze begins in a call
// of one action and ends in a call of another.
type Shared struct {
	csi       func() bool
	once      sync.Once
	err       error
	decisions *decision.Decisions
	freezes   *around.Freezes
	groups    *group.Groups
	tracker   *upload.Tracker
	clients   *cluster.Clients
	cleaner   *cleanup.Cleaner
	undoer    *recovery.Undoer
	tidied    sync.Once
	warner    *restore.Warner
}

// NewShared returns a Shared. It calls csi when Velero requests the first action,
// because Velero's flags are known only then.
func NewShared(csi func() bool) *Shared { return &Shared{csi: csi} }

func (s *Shared) connect(log logrus.FieldLogger) error {
	s.once.Do(func() {
		clients, err := cluster.NewClients()
		if err != nil {
			s.err = fmt.Errorf("stillpoint: %w", err)
			return
		}
		clock := clock.RealClock{}
		namespaces := unit.NewNamespaces(clients, clock, log)
		server := decision.Server{CSI: s.csi(), Poll: velerofacts.PollInterval()} // a plugin inherits the server's environment
		s.decisions = decision.New(clients, namespaces, server, clock)
		reporter := quiesce.NewReporter(clients.Kube)
		s.freezes = around.New(clients, namespaces, s.decisions, reporter, log)
		s.tracker = upload.NewTracker(clients, s.decisions.Settings, clock, log)
		s.clients = clients
		s.groups = group.New(clients, namespaces, s.decisions, reporter, log)
		s.cleaner = cleanup.New(clients, clock)
		s.warner = &restore.Warner{Settings: s.decisions.Settings, Log: log}
		s.undoer = recovery.NewUndoer(clients, s.decisions.Settings, clock)
	})
	return s.err
}

// Volume returns the action on PersistentVolumes.
func (s *Shared) Volume(log logrus.FieldLogger) (any, error) {
	return &volumeAction{s}, s.connect(log)
}

// Claim returns the action on PersistentVolumeClaims.
func (s *Shared) Claim(log logrus.FieldLogger) (any, error) {
	return &claimAction{s, log}, s.connect(log)
}

// Pods returns the action that puts the items of one freeze into one item block.
func (s *Shared) Pods(log logrus.FieldLogger) (any, error) {
	return &podsAction{s}, s.connect(log)
}

// Locations returns the VolumeSnapshotter for CSI volumes. It shares freezes with the
// actions of the same process.
func (s *Shared) Locations(log logrus.FieldLogger) (any, error) {
	if err := s.connect(log); err != nil {
		return nil, err
	}
	return snapshotter.New(csi.New(s.clients, s.freezes, s.decisions, log)), nil
}

// ExternalLocations returns the VolumeSnapshotter for the snapshot API before CSI's.
func (s *Shared) ExternalLocations(log logrus.FieldLogger) (any, error) {
	if err := s.connect(log); err != nil {
		return nil, err
	}
	return snapshotter.New(externalstorage.New(s.clients, s.freezes, log)), nil
}

type volumeAction struct{ *Shared }

func (*volumeAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumes"}}, nil
}

// Execute freezes. Velero takes the snapshot next.
func (a *volumeAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, error) {
	volume := &corev1.PersistentVolume{}
	restore.StripFinalizers(&unstructured.Unstructured{Object: item.UnstructuredContent()})
	if err := convert(item, volume); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.freezes.Volume(ctx, volume, backup); err != nil {
		return nil, nil, err
	}
	return item, nil, nil
}

type claimAction struct {
	*Shared
	log logrus.FieldLogger
}

// Name is not called through the plugin protocol; Velero uses the registered one.
func (*claimAction) Name() string { return "stillpoint.io/claim" }

// AppliesTo is called once per backup, before Velero lists its items. By then the
// deletion of earlier leftovers must be requested, and abandoned freezes must be
// released.
func (a *claimAction) AppliesTo() (velero.ResourceSelector, error) {
	a.tidied.Do(func() {
		var wait sync.WaitGroup
		wait.Go(func() { a.undoer.AtBackup(context.Background(), a.log) })
		wait.Go(func() { a.warnOfConfiguration() })
		a.cleaner.AtBackup(context.Background(), a.log)
		wait.Wait()
	})
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

// warnOfConfiguration logs once, before the backup begins, that the configuration cannot
// be used. Each use of it is an error of its own.
func (a *claimAction) warnOfConfiguration() {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if _, err := a.decisions.Settings(ctx); config.Unusable(err) {
		a.log.Warnf("The configuration cannot be used, so this backup quiesces nothing and takes no snapshot of volumes that are handed to Stillpoint: %v", err)
	}
}

// Execute takes the snapshot of a volume on the path Group, with all others of its unit.
// For any other volume, Velero has taken the snapshot by now.
func (a *claimAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error) {
	claim := &corev1.PersistentVolumeClaim{}
	restore.StripFinalizers(&unstructured.Unstructured{Object: item.UnstructuredContent()})
	if err := convert(item, claim); err != nil {
		return nil, nil, "", nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	d, err := a.decisions.For(backup).Called(ctx, claim)
	if err != nil {
		return nil, nil, "", nil, err
	}
	if d.Path != decision.Group {
		return a.executeOther(ctx, d, item, claim, backup)
	}
	decision.Log(a.log, logrus.InfoLevel, d.Findings(true))
	answer := a.groups.Claim(ctx, d, claim, backup)
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(answer.Claim)
	if err != nil {
		return nil, nil, "", nil, fmt.Errorf("stillpoint: convert claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	a.prepareRestore(ctx, d, content, backup)
	return &unstructured.Unstructured{Object: content}, answer.Additional, answer.Operation, answer.Update, nil
}

// executeOther is Execute for a claim on another path. Velero has taken its snapshot by
// now, or it has none.
func (a *claimAction) executeOther(ctx context.Context, d *decision.Decision, item runtime.Unstructured, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error) {
	if velerofacts.Finalizing(backup) {
		return item, nil, "", nil, nil
	}
	if err := a.freezes.Claim(ctx, d, claim, backup); err != nil {
		return nil, nil, "", nil, err
	}
	unstructured.RemoveNestedField(item.UnstructuredContent(), "metadata", "annotations", api.AnnotationLevel) // of an earlier backup
	if level := a.freezes.Level(claim, backup); level != "" {
		_ = unstructured.SetNestedField(item.UnstructuredContent(), level, "metadata", "annotations", api.AnnotationLevel)
	}
	a.prepareRestore(ctx, d, item.UnstructuredContent(), backup)
	return item, nil, a.follow(ctx, claim, backup), nil, nil
}

// prepareRestore prepares a claim for its restore. The claim stays in the backup after
// an error, too.
func (a *claimAction) prepareRestore(ctx context.Context, d *decision.Decision, content map[string]any, backup *velerov1.Backup) {
	claim := &unstructured.Unstructured{Object: content}
	err := a.warner.Claim(ctx, d, claim, backup)
	if err != nil && !config.Unusable(err) { // logged once by warnOfConfiguration
		a.log.Warnf("It is not known how the claim %s/%s comes back: %v", claim.GetNamespace(), claim.GetName(), err)
	}
}

// follow returns the ID of the operation that follows a snapshot which Velero took by
// its own action or through a location; "" if none.
func (a *claimAction) follow(ctx context.Context, claim *corev1.PersistentVolumeClaim, backup *velerov1.Backup) string {
	if a.csi() { // Velero calls no VolumeSnapshotter for CSI volumes
		return a.tracker.FollowVeleros(ctx, claim, backup)
	}
	operation, err := a.tracker.Located(ctx, claim, backup)
	if err != nil {
		a.log.Warnf("Objects of a snapshot may stay until the next backup: claim %s/%s: %v", claim.Namespace, claim.Name, err)
	}
	return operation
}

// Progress returns the progress of an operation of Execute.
func (a *claimAction) Progress(operation string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if err := a.groups.DeleteUnclaimed(ctx, backup); err != nil {
		return velero.OperationProgress{Description: err.Error()}, nil // perhaps transient, and Velero never asks again after an error
	}
	return a.tracker.Progress(ctx, operation, backup)
}

// Cancel ends an operation.
func (a *claimAction) Cancel(operation string, backup *velerov1.Backup) error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	return errors.Join(a.groups.DeleteUnclaimed(ctx, backup), a.tracker.Cancel(ctx, operation, backup))
}

type podsAction struct{ *Shared }

// Name is not called through the plugin protocol; Velero uses the registered one.
func (*podsAction) Name() string { return "stillpoint.io/quiesce-pods" }

func (*podsAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"pods", "persistentvolumeclaims"}}, nil
}

// GetRelatedItems returns the other pods and claims of the same freeze.
func (a *podsAction) GetRelatedItems(item runtime.Unstructured, backup *velerov1.Backup) ([]velero.ResourceIdentifier, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if item.GetObjectKind().GroupVersionKind().Kind == "PersistentVolumeClaim" {
		claim := &corev1.PersistentVolumeClaim{}
		if err := convert(item, claim); err != nil {
			return nil, err
		}
		return a.freezes.RelatedToClaim(ctx, claim, backup), nil
	}
	pod := &corev1.Pod{}
	if err := convert(item, pod); err != nil {
		return nil, err
	}
	return a.freezes.Related(ctx, pod, backup), nil
}

func convert(item runtime.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), into); err != nil {
		return fmt.Errorf("stillpoint: read the item that Velero passed: %w", err)
	}
	return nil
}
