package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// uploadsAtOnce is how many volumes the node-agent moves at once, 1 by
	// default, and backupsAtOnce how many backups Velero has at work, also 1.
	uploadsAtOnce, backupsAtOnce = 6, 5
	// movedSize is the volumes' whose backups move data: what is in them does
	// not matter, and it is moved.
	movedSize = "16Mi"
	// leftGrace is how long after the end of a backup a snapshot may still go
	// before it counts as left.
	leftGrace = time.Minute
	// classOfClaim is by which Velero and Stillpoint take a claim's snapshots
	// with a class of its own.
	classOfClaim = "velero.io/csi-volumesnapshot-class"
)

// mover is who takes the snapshots and answers for them.
type mover int

const (
	byStillpoint mover = iota // by the volume policy
	byVelero                  // Velero alone, without the plugin
)

// movers are how they are named in the figures.
var movers = [...]string{"stillpoint", "velero"}

func (m mover) String() string { return movers[m] }

// moving says who takes the snapshots and who moves the data.
func moving(by mover, plays bool) string {
	switch {
	case plays:
		return "Stillpoint, the bench as the mover"
	case by == byStillpoint:
		return "Stillpoint, Velero's mover"
	default:
		return "Velero alone"
	}
}

// snapshotClass is a VolumeSnapshotClass of the bench.
type snapshotClass struct {
	policy snapshotv1.DeletionPolicy
	fails  bool // the driver fails the first two deletions of each snapshot
}

// snapshotClasses are those whose snapshots are exported. Retain is the hard
// case: when the objects go, the storage's snapshot stays.
var snapshotClasses = []snapshotClass{
	{policy: snapshotv1.VolumeSnapshotContentRetain},
	{policy: snapshotv1.VolumeSnapshotContentDelete},
	{policy: snapshotv1.VolumeSnapshotContentRetain, fails: true},
}

func (s snapshotClass) name() string {
	name := "bench-" + strings.ToLower(string(s.policy))
	if s.fails {
		name += "-fails"
	}
	return name
}

// String is for people.
func (s snapshotClass) String() string {
	if s.fails {
		return string(s.policy) + ", 2 deletions fail"
	}
	return string(s.policy)
}

func (s snapshotClass) object() *snapshotv1.VolumeSnapshotClass {
	object := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.name(), Labels: ours}, Driver: loopcsi.Name, DeletionPolicy: s.policy,
	}
	if s.fails {
		object.Parameters = map[string]string{"failDelete": "the array is busy", "failDeleteTimes": "2"}
	}
	return object
}

// movedClaim is a claim whose backups move data.
type movedClaim struct {
	namespace, name string
	class           snapshotClass
	volume          string // the storage's name of it
}

// makeMoved makes a namespace with a claim for each of these classes, and waits
// until they have their volumes. No pod uses them.
func (b *bench) makeMoved(ctx context.Context, namespace string, classes ...snapshotClass) ([]movedClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, boundLimit)
	defer cancel()
	for _, class := range snapshotClasses {
		if err := b.Objects().Create(ctx, class.object()); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: ours}}
	if err := b.Objects().Create(ctx, ns); err != nil {
		return nil, err
	}
	moved := make([]movedClaim, len(classes))
	for i, class := range classes {
		moved[i] = movedClaim{namespace: namespace, name: fmt.Sprintf("data%d", i+1), class: class}
		err := b.Objects().Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: moved[i].name, Annotations: map[string]string{classOfClaim: class.name()}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(movedSize)}},
			},
		})
		if err != nil {
			return nil, err
		}
	}
	for i := range moved {
		err := stage.Until(ctx, "claim "+namespace+"/"+moved[i].name+" is bound", func(ctx context.Context) (bool, error) {
			claim := &corev1.PersistentVolumeClaim{}
			if err := b.Objects().Get(ctx, client.ObjectKey{Namespace: namespace, Name: moved[i].name}, claim); err != nil || claim.Status.Phase != corev1.ClaimBound {
				return false, err
			}
			volume := &corev1.PersistentVolume{}
			err := b.Objects().Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, volume)
			if err == nil && volume.Spec.CSI != nil {
				moved[i].volume = volume.Spec.CSI.VolumeHandle
			}
			return moved[i].volume != "", err
		})
		if err != nil {
			return nil, err
		}
	}
	return moved, nil
}

// createMoving asks Velero for a backup of a namespace that moves data.
func (b *bench) createMoving(ctx context.Context, name, namespace string, by mover, dataMover string) error {
	args := []string{"backup", "create", name, "--include-namespaces", namespace, "--snapshot-move-data"}
	for key, value := range ours {
		args = append(args, "--labels", key+"="+value)
	}
	if by == byStillpoint {
		args = append(args, "--resource-policies-configmap", policy)
	}
	if dataMover != "" {
		args = append(args, "--data-mover", dataMover)
	}
	_, err := b.Velero(ctx, args...)
	return err
}

// storedOf are the storage's snapshots of claims, by their volumes.
func (b *bench) storedOf(ctx context.Context, claims []movedClaim) (map[string][]string, error) {
	all, err := b.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, s := range all {
		if slices.ContainsFunc(claims, func(c movedClaim) bool { return c.volume == s.Volume }) {
			found[s.Volume] = append(found[s.Volume], s.ID)
		}
	}
	return found, nil
}

// left waits until the storage has no snapshot of the claims any more, for
// leftGrace at the most, and returns those that it has, by their class.
func (b *bench) left(ctx context.Context, claims []movedClaim) (map[snapshotClass]int, error) {
	deadline := time.Now().Add(leftGrace)
	for {
		stored, err := b.storedOf(ctx, claims)
		if err != nil {
			return nil, err
		}
		if len(stored) == 0 || time.Now().After(deadline) {
			left := map[snapshotClass]int{}
			for _, c := range claims {
				left[c.class] += len(stored[c.volume])
			}
			return left, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// dropSnapshots deletes what is left of claims in the storage, and the objects
// that stand for it: each snapshot gets a content with policy Delete that goes.
func (b *bench) dropSnapshots(ctx context.Context, namespace string, handles []string) error {
	snapshots := &snapshotv1.VolumeSnapshotList{}
	if err := b.Objects().List(ctx, snapshots, client.InNamespace(namespace)); err != nil {
		return err
	}
	if err := b.deleteListed(ctx, &snapshotv1.VolumeSnapshotContentList{}, namespace, handles); err != nil {
		return err
	}
	for i := range snapshots.Items {
		if err := client.IgnoreNotFound(b.Objects().Delete(ctx, &snapshots.Items[i])); err != nil {
			return err
		}
	}
	all, err := b.Snapshots(ctx)
	if err != nil {
		return err
	}
	handles = slices.DeleteFunc(slices.Clone(handles), func(h string) bool {
		return !slices.ContainsFunc(all, func(s cluster.StoredSnapshot) bool { return s.ID == h })
	})
	contents := make([]client.Object, len(handles))
	for i := range handles {
		name := "bench-left-" + rand.String(8)
		contents[i] = &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: ours},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Driver: loopcsi.Name,
				Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handles[i]},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: namespace, Name: name},
			},
		}
		// A VolumeSnapshot of its own has the controller keep the content until
		// the storage's snapshot is gone.
		if err := b.Objects().Create(ctx, contents[i]); err != nil {
			return err
		}
		bound := &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &name}},
		}
		if err := b.Objects().Create(ctx, bound); err != nil {
			return err
		}
		if err := b.ready(ctx, []client.Object{bound}); err != nil {
			return err
		}
		if err := b.Objects().Delete(ctx, bound); err != nil {
			return err
		}
	}
	return stage.Until(ctx, "the storage has dropped what was left", func(ctx context.Context) (bool, error) {
		all, err := b.Snapshots(ctx)
		return err == nil && !slices.ContainsFunc(all, func(s cluster.StoredSnapshot) bool { return slices.Contains(handles, s.ID) }), err
	})
}

// deleteListed deletes the contents that name one of these handles and belong to
// a namespace or are the mover's, with policy Delete.
func (b *bench) deleteListed(ctx context.Context, list *snapshotv1.VolumeSnapshotContentList, namespace string, handles []string) error {
	if err := b.Objects().List(ctx, list); err != nil {
		return err
	}
	var gone []client.Object
	for i := range list.Items {
		content := &list.Items[i]
		ofHandle := content.Status != nil && content.Status.SnapshotHandle != nil && slices.Contains(handles, *content.Status.SnapshotHandle)
		if !ofHandle && content.Spec.VolumeSnapshotRef.Namespace != namespace {
			continue
		}
		if content.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentDelete {
			before := content.DeepCopy()
			content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
			if err := client.IgnoreNotFound(b.Objects().Patch(ctx, content, client.MergeFrom(before))); err != nil {
				return err
			}
		}
		bound := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{
			Namespace: content.Spec.VolumeSnapshotRef.Namespace, Name: content.Spec.VolumeSnapshotRef.Name,
		}}
		if err := client.IgnoreNotFound(b.Objects().Delete(ctx, bound)); err != nil {
			return err
		}
		gone = append(gone, content)
	}
	return b.DeleteAll(ctx, gone)
}

// dropAll does so for all claims of a namespace.
func (b *bench) dropAll(ctx context.Context, namespace string) error {
	claims := &corev1.PersistentVolumeClaimList{}
	if err := b.Objects().List(ctx, claims, client.InNamespace(namespace)); err != nil {
		return err
	}
	var handles []string
	for i := range claims.Items {
		if claims.Items[i].Spec.VolumeName == "" {
			continue
		}
		stored, err := b.StoredSnapshots(ctx, namespace, claims.Items[i].Name)
		if err != nil {
			return err
		}
		handles = append(handles, stored...)
	}
	return b.dropSnapshots(ctx, namespace, handles)
}

// arguments of Velero's programs, which the bench sets and takes back.
const (
	agentConfig      = "bench-node-agent"
	agentArgument    = "--node-agent-configmap="
	parallelArgument = "--concurrent-backups="
)

// tune has Velero and its node-agent do several things at once: the default is
// one, and 100 backups would take hours.
func (b *bench) tune(ctx context.Context) error {
	config, err := json.Marshal(map[string]any{"loadConcurrency": map[string]int{"globalConfig": uploadsAtOnce}})
	if err != nil {
		return err
	}
	object := agentConfigMap()
	object.Data = map[string]string{"config.json": string(config)}
	if err := b.Objects().Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	b.Say("restarting Velero for %d backups and %d uploads at once", backupsAtOnce, uploadsAtOnce)
	return b.setArguments(ctx, agentArgument+agentConfig, fmt.Sprintf("%s%d", parallelArgument, backupsAtOnce))
}

// untune takes that back, if it is so.
func (b *bench) untune(ctx context.Context) error {
	return errors.Join(b.setArguments(ctx, "", ""), b.DeleteAll(ctx, []client.Object{agentConfigMap()}))
}

func agentConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: agentConfig, Labels: ours}}
}

// setArguments sets the bench's argument of the node-agent and of the server;
// an empty one is taken away.
func (b *bench) setArguments(ctx context.Context, agent, server string) error {
	daemons := &appsv1.DaemonSet{}
	if err := b.Objects().Get(ctx, client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: "node-agent"}, daemons); err != nil {
		return err
	}
	before := daemons.DeepCopy()
	setArgument(&daemons.Spec.Template.Spec.Containers[0], agentArgument, agent)
	if err := b.patchRolledOut(ctx, daemons, before, "daemonset/node-agent"); err != nil {
		return err
	}
	velero := &appsv1.Deployment{}
	if err := b.Objects().Get(ctx, client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: "velero"}, velero); err != nil {
		return err
	}
	was := velero.DeepCopy()
	setArgument(&velero.Spec.Template.Spec.Containers[0], parallelArgument, server)
	return b.patchRolledOut(ctx, velero, was, "deployment/velero")
}

// The argument by which Velero takes CSI snapshots itself.
const (
	featuresArgument = "--features="
	csiFeature       = "EnableCSI"
)

// setFeatures runs the server with these features.
func (b *bench) setFeatures(ctx context.Context, features string) error {
	velero := &appsv1.Deployment{}
	if err := b.Objects().Get(ctx, client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: "velero"}, velero); err != nil {
		return err
	}
	was := velero.DeepCopy()
	container := &velero.Spec.Template.Spec.Containers[0]
	if !slices.Contains(container.Args, featuresArgument+features) {
		setArgument(container, featuresArgument, featuresArgument+features)
	}
	return b.patchRolledOut(ctx, velero, was, "deployment/velero")
}

// setArgument replaces the argument that begins so.
func setArgument(container *corev1.Container, prefix, argument string) {
	container.Args = slices.DeleteFunc(slices.Clone(container.Args), func(a string) bool { return strings.HasPrefix(a, prefix) })
	if argument != "" {
		container.Args = append(container.Args, argument)
	}
}

// patchRolledOut patches one of Velero's workloads and waits until it runs so.
func (b *bench) patchRolledOut(ctx context.Context, object, before client.Object, name string) error {
	if err := b.Objects().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return err
	}
	if object.GetGeneration() == before.GetGeneration() {
		return nil
	}
	return b.veleroRuns(ctx, name)
}

// veleroRuns waits until one of Velero's workloads is as configured, and all of
// Velero ready.
func (b *bench) veleroRuns(ctx context.Context, name string) error {
	if _, err := b.Kubectl(ctx, nil, "-n", cluster.VeleroNamespace, "rollout", "status", name, "--timeout=110s"); err != nil {
		return err
	}
	return b.SetVeleroVariable(ctx, earlyVariable, "") // which waits
}

// withoutPlugin takes the plugin out of Velero, and puts it back when do has
// ended.
func (b *bench) withoutPlugin(ctx context.Context, do func() error) error {
	velero := &appsv1.Deployment{}
	if err := b.Objects().Get(ctx, client.ObjectKey{Namespace: cluster.VeleroNamespace, Name: "velero"}, velero); err != nil {
		return err
	}
	b.Say("taking the plugin out of Velero")
	for _, container := range velero.Spec.Template.Spec.InitContainers {
		if !strings.Contains(container.Image, "/stillpoint:") {
			continue
		}
		if _, err := b.Velero(ctx, "plugin", "remove", container.Image); err != nil {
			return err
		}
	}
	err := b.veleroRuns(ctx, "deployment/velero")
	if err == nil {
		err = do()
	}
	b.Say("putting the plugin back")
	return errors.Join(err, b.InstallPlugin(context.WithoutCancel(ctx), b.plugin))
}

// forgetMoved deletes the backups that moved data, as soon as they have ended;
// uploads that still run are cancelled for that.
// Their snapshots are not theirs any more, so there is nothing but the Backup, by
// which their uploads go, and what the object store has.
func (b *bench) forgetMoved(ctx context.Context) error {
	backups, err := b.Backups(ctx, ours)
	if err != nil {
		return err
	}
	uploads := &velerov2alpha1.DataUploadList{}
	if err := b.Objects().List(ctx, uploads, client.InNamespace(cluster.VeleroNamespace)); err != nil {
		return err
	}
	for i := range uploads.Items {
		upload := &uploads.Items[i]
		if !strings.HasPrefix(upload.Spec.SourceNamespace, "bench-") || upload.Spec.Cancel || uploadEnded(upload) {
			continue
		}
		before := upload.DeepCopy()
		upload.Spec.Cancel = true
		if upload.Spec.DataMover == played {
			upload.Status.Phase = velerov2alpha1.DataUploadPhaseCanceled
		}
		if err := client.IgnoreNotFound(b.Objects().Patch(ctx, upload, client.MergeFrom(before))); err != nil {
			return err
		}
	}
	var moved []client.Object
	for i := range backups {
		backup := &backups[i]
		if backup.Spec.SnapshotMoveData == nil || !*backup.Spec.SnapshotMoveData {
			continue
		}
		if _, err := b.AwaitBackup(ctx, backup.Name, nil); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		// First from the store: from there Velero would take the object again.
		if err := os.RemoveAll(b.BackupDir(backup.Name)); err != nil {
			return err
		}
		moved = append(moved, backup)
	}
	return b.DeleteAll(ctx, moved)
}

// forgetRepositories has Velero look no longer after the repositories of the
// bench's namespaces. The next run finds them in the object store again.
func (b *bench) forgetRepositories(ctx context.Context) error {
	list := &velerov1.BackupRepositoryList{}
	if err := b.Objects().List(ctx, list, client.InNamespace(cluster.VeleroNamespace)); err != nil {
		return err
	}
	var gone []client.Object
	for i := range list.Items {
		if strings.HasPrefix(list.Items[i].Spec.VolumeNamespace, "bench-") {
			gone = append(gone, &list.Items[i])
		}
	}
	return b.DeleteAll(ctx, gone)
}
