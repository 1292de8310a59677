package fake

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	csiactions "github.com/vmware-tanzu/velero/pkg/backup/actions/csi"
	"github.com/vmware-tanzu/velero/pkg/client"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	biav1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v1"
	biav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v2"
	ibav1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/itemblockaction/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"stillpoint.io/stillpoint/plugins/backup"
)

// Velero is one process of the plugin during one backup, and the Velero that calls
// it. What the process logs is in Log.
type Velero struct {
	Log    *logrustest.Hook
	Logger logrus.FieldLogger
	// Volume, Claim and Pods are the plugin's actions, Own is Velero's action for
	// claims, which takes CSI snapshots.
	Volume biav1.BackupItemAction
	Claim  biav2.BackupItemAction
	Pods   ibav1.ItemBlockAction
	Own    biav2.BackupItemAction
	bed    *Bed
	asked  sync.Once
}

// connecting is held while the environment says where the API server is.
var connecting sync.Mutex

// Connect calls connect with an environment in which the plugin's clients find
// the bed's API server, as every plugin process has it.
func (b *Bed) Connect(connect func()) {
	b.T.Helper()
	connecting.Lock()
	defer connecting.Unlock()
	kubeconfig := filepath.Join(b.T.TempDir(), "kubeconfig")
	config := clientcmdapi.NewConfig()
	config.Clusters["fake"] = &clientcmdapi.Cluster{Server: b.API.Config().Host}
	config.Contexts["fake"] = &clientcmdapi.Context{Cluster: "fake"}
	config.CurrentContext = "fake"
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		b.T.Fatal(err)
	}
	for key, value := range map[string]string{"KUBECONFIG": kubeconfig, "VELERO_NAMESPACE": VeleroNamespace} {
		before, had := os.LookupEnv(key)
		if err := os.Setenv(key, value); err != nil {
			b.T.Fatal(err)
		}
		defer func() {
			if _ = os.Unsetenv(key); had {
				_ = os.Setenv(key, before)
			}
		}()
	}
	connect()
}

// Logs returns a logger and what it has logged.
func Logs() (*logrus.Logger, *logrustest.Hook) {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.DebugLevel)
	return logger, logrustest.NewLocal(logger)
}

// Velero starts a plugin process, with a Velero that has EnableCSI.
func (b *Bed) Velero() *Velero {
	b.T.Helper()
	return b.VeleroWithout(true)
}

// VeleroWithout is Velero with EnableCSI or without.
func (b *Bed) VeleroWithout(csi bool) *Velero {
	b.T.Helper()
	logger, hook := Logs()
	v := &Velero{Log: hook, Logger: logger, bed: b}
	b.Connect(func() {
		shared := backup.NewShared(func() bool { return csi })
		v.actions(shared, logger)
		if csi {
			factory := client.NewFactory("velero", client.VeleroConfig{client.ConfigKeyNamespace: VeleroNamespace})
			v.Own = made[biav2.BackupItemAction](b, func(log logrus.FieldLogger) (any, error) {
				return csiactions.NewPvcBackupItemAction(factory)(log)
			}, logger)
		}
	})
	return v
}

func (v *Velero) actions(shared *backup.Shared, log logrus.FieldLogger) {
	v.Volume = made[biav1.BackupItemAction](v.bed, shared.Volume, log)
	v.Claim = made[biav2.BackupItemAction](v.bed, shared.Claim, log)
	v.Pods = made[ibav1.ItemBlockAction](v.bed, shared.Pods, log)
}

func made[T any](b *Bed, make func(logrus.FieldLogger) (any, error), log logrus.FieldLogger) T {
	b.T.Helper()
	action, err := make(log)
	if err != nil {
		b.T.Fatal(err)
	}
	typed, ok := action.(T)
	if !ok {
		b.T.Fatalf("%T is no %T", action, new(T))
	}
	return typed
}

// Lines are the messages that the plugin has logged at a level or above it.
func (v *Velero) Lines(level logrus.Level) []string {
	var lines []string
	for _, entry := range v.Log.AllEntries() {
		if entry.Level <= level {
			lines = append(lines, entry.Message)
		}
	}
	return lines
}

// Errors are the lines that count as a backup's errors.
func (v *Velero) Errors() []string { return v.Lines(logrus.ErrorLevel) }

// Said reports whether a line at a level or above it contains all words.
func (v *Velero) Said(level logrus.Level, words ...string) bool {
	return slices.ContainsFunc(v.Lines(level), func(line string) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
	})
}

// Result is what a backup has, by the names of claims.
type Result struct {
	// Claims are those that are in the backup, as it holds them.
	Claims map[string]*corev1.PersistentVolumeClaim
	// Dropped are those that an action's error dropped, with the error.
	Dropped map[string]error
	// Operations are the plugin's, Additional the additional items of a claim.
	Operations map[string]string
	Additional map[string][]velero.ResourceIdentifier
}

// Backup backs up workloads as Velero does: the block of each pod, its claims one
// after another, of each the volume, Velero's own action for claims and the
// plugin's. At the end it asks once for the progress of all operations.
func (v *Velero) Backup(backup *velerov1.Backup, workloads ...*Workload) *Result {
	v.bed.T.Helper()
	v.Begin()
	r := NewResult()
	for _, w := range workloads {
		for _, pod := range w.Pods {
			if _, err := v.Pods.GetRelatedItems(v.item("pods", pod.Namespace, pod.Name), backup); err != nil {
				r.Dropped[pod.Name] = err
			}
		}
		for _, claim := range w.Claims {
			v.BackUpClaim(backup, w.Namespace, claim, r)
		}
	}
	v.Progress(backup, r)
	return r
}

// NewResult is empty.
func NewResult() *Result {
	return &Result{
		Claims: map[string]*corev1.PersistentVolumeClaim{}, Dropped: map[string]error{},
		Operations: map[string]string{}, Additional: map[string][]velero.ResourceIdentifier{},
	}
}

// Begin is what Velero asks before it lists a backup's items. Further calls do
// nothing.
func (v *Velero) Begin() {
	v.asked.Do(func() {
		for _, applies := range []func() (velero.ResourceSelector, error){v.Volume.AppliesTo, v.Claim.AppliesTo, v.Pods.AppliesTo} {
			if _, err := applies(); err != nil {
				v.bed.T.Error(err)
			}
		}
	})
}

// Progress asks once for the progress of all operations, as Velero does after all
// items.
func (v *Velero) Progress(backup *velerov1.Backup, r *Result) map[string]velero.OperationProgress {
	v.bed.T.Helper()
	progress := map[string]velero.OperationProgress{}
	for claim, operation := range r.Operations {
		if operation == "" {
			continue
		}
		var err error
		if progress[claim], err = v.Claim.Progress(operation, backup); err != nil {
			v.bed.T.Errorf("progress of %s: %v", claim, err)
		}
	}
	return progress
}

// BackUpClaim backs up one claim, its volume first.
func (v *Velero) BackUpClaim(backup *velerov1.Backup, namespace, name string, r *Result) {
	v.bed.T.Helper()
	item := v.item("persistentvolumeclaims", namespace, name)
	volume, _, _ := unstructured.NestedString(item.Object, "spec", "volumeName")
	if volume != "" {
		if _, _, err := v.Volume.Execute(v.item("persistentvolumes", "", volume), backup); err != nil {
			r.Dropped[name] = err
			return
		}
	}
	var changed runtime.Unstructured = item
	if v.Own != nil {
		after, additional, _, _, err := v.Own.Execute(changed, backup)
		if err != nil {
			r.Dropped[name] = fmt.Errorf("Velero's own action: %w", err) //nolint:staticcheck // a name
			return
		}
		if after != nil { // nil means no change, by the plugin protocol
			changed = after
		}
		r.Additional[name] = append(r.Additional[name], additional...)
		v.backUpSnapshots(additional, backup)
	}
	after, additional, operation, _, err := v.Claim.Execute(changed, backup)
	if err != nil {
		r.Dropped[name] = err
		return
	}
	r.Additional[name] = append(r.Additional[name], additional...)
	r.Operations[name] = operation
	v.backUpSnapshots(additional, backup)
	claim := &corev1.PersistentVolumeClaim{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(after.UnstructuredContent(), claim); err != nil {
		v.bed.T.Error(err)
	}
	r.Claims[name] = claim
}

// backUpSnapshots does to VolumeSnapshots that are additional items what Velero's
// own action for them does with live objects: the handle becomes an annotation, and
// the backup's name a label of the content.
func (v *Velero) backUpSnapshots(items []velero.ResourceIdentifier, backup *velerov1.Backup) {
	for _, item := range items {
		if item.Resource != "volumesnapshots" {
			continue
		}
		content := ""
		v.bed.API.Update("volumesnapshots", item.Namespace, item.Name, func(o *unstructured.Unstructured) {
			content, _, _ = unstructured.NestedString(o.Object, "status", "boundVolumeSnapshotContentName")
			annotate(o, velerov1.VolumeSnapshotHandleAnnotation, "snap-"+strings.TrimPrefix(content, "snapcontent-"))
		})
		v.bed.API.Update("volumesnapshotcontents", "", content, func(o *unstructured.Unstructured) {
			labels := o.GetLabels()
			if labels == nil {
				labels = map[string]string{}
			}
			labels[velerov1.BackupNameLabel] = label.GetValidName(backup.Name)
			o.SetLabels(labels)
		})
	}
}

// item is an object as Velero passes it to actions.
func (v *Velero) item(resource, namespace, name string) *unstructured.Unstructured {
	v.bed.T.Helper()
	for _, object := range v.bed.API.All(resource) {
		if object.GetNamespace() == namespace && object.GetName() == name {
			return &object
		}
	}
	v.bed.T.Fatalf("there is no %s %s/%s", resource, namespace, name)
	return nil
}

// Events are the messages of all events with a reason.
func (b *Bed) Events(reason string) []string {
	var messages []string
	for _, event := range b.API.All("events") {
		if event.Object["reason"] == reason {
			message, _, _ := unstructured.NestedString(event.Object, "message")
			messages = append(messages, message)
		}
	}
	return messages
}
