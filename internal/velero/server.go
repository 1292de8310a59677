package velero

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/cmd/server/config"
	"github.com/vmware-tanzu/velero/pkg/cmd/util/flag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

const (
	// serverContainer is the name that `velero install` gives the server's container.
	serverContainer = "velero"
	// earlyPolling is the variable in the server's environment that makes it poll a
	// new snapshot every second.
	earlyPolling = "CSI_SNAPSHOT_EARLY_FREQUENT_POLLING"
)

// WorkersWarning describes the risk of a server with several workers.
const WorkersWarning = "Velero 1.18 collects the operations of a backup without a lock: with --item-block-worker-count above 1 it can lose one, " +
	"and with it the end of a DataUpload; set it to 1 in backups that move data"

// SnapshotTimeout is the csiSnapshotTimeout of a Backup that sets none. The server
// has no flag for it.
var SnapshotTimeout = config.GetDefaultConfig().DefaultCSISnapshotTimeout

// Server is what the flags and the environment of a Velero server say about the
// backups that it makes.
type Server struct {
	// Source names where the flags come from, such as "Deployment velero/velero".
	Source string
	// CSI reports whether the feature EnableCSI is on.
	CSI bool
	// GlobalPolicies is the ConfigMap of the global volume policies, "" for none.
	GlobalPolicies string
	// Defaults for a Backup that sets none.
	SnapshotMoveData, VolumesToFSBackup bool
	VolumeGroupLabel                    string
	// Workers is the number of item blocks that are backed up at the same time.
	Workers int
	// Poll is the interval at which the server looks at a snapshot that is not yet
	// cut.
	Poll time.Duration
}

// ReadServer reads the Deployment of a server. It returns an error for an invalid
// flag, with which the server does not start.
func ReadServer(deployment *appsv1.Deployment) (Server, error) {
	return readServer(deployment, fmt.Sprintf("Deployment %s/%s", deployment.Namespace, deployment.Name))
}

func readServer(deployment *appsv1.Deployment, source string) (Server, error) {
	server := Server{Source: source}
	containers := deployment.Spec.Template.Spec.Containers
	if len(containers) == 0 {
		return server, fmt.Errorf("%s has no containers", source)
	}
	i := max(0, slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == serverContainer }))
	flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	values := config.GetDefaultConfig()
	values.BindFlags(flags)
	var features flag.StringArray
	flags.Var(&features, "features", "")
	if err := flags.Parse(slices.Concat(containers[i].Command, containers[i].Args)); err != nil {
		return server, fmt.Errorf("read the flags of the server in %s: %w", source, err)
	}
	early := ""
	for _, variable := range containers[i].Env {
		if variable.Name == earlyPolling {
			early = variable.Value
		}
	}
	return Server{
		Source: source, CSI: slices.Contains(features, velerov1.CSIFeatureFlag), GlobalPolicies: values.GlobalBackupVolumePoliciesConfigMap,
		SnapshotMoveData: values.DefaultSnapshotMoveData, VolumesToFSBackup: values.DefaultVolumesToFsBackup,
		VolumeGroupLabel: values.DefaultVGSLabelKey, Workers: values.ItemBlockWorkerCount, Poll: pollInterval(early),
	}, nil
}

// ServerOf returns a server with these arguments, for a server whose Deployment
// cannot be read. An argument NAME=VALUE is a variable of its environment.
func ServerOf(arguments []string) (Server, error) {
	container := corev1.Container{Name: serverContainer}
	for _, argument := range arguments {
		if name, value, ok := strings.Cut(argument, "="); ok && !strings.HasPrefix(argument, "-") {
			container.Env = append(container.Env, corev1.EnvVar{Name: name, Value: value})
			continue
		}
		container.Args = append(container.Args, argument)
	}
	deployment := &appsv1.Deployment{}
	deployment.Spec.Template.Spec.Containers = []corev1.Container{container}
	return readServer(deployment, "--server-args")
}

// Complete returns a Backup as the server starts it: with the server's defaults,
// and without the namespaces that are labeled as excluded.
func (s Server) Complete(backup *velerov1.Backup, excluded []string) *velerov1.Backup {
	backup = backup.DeepCopy()
	spec := &backup.Spec
	if spec.VolumeGroupSnapshotLabelKey == "" {
		spec.VolumeGroupSnapshotLabelKey = s.VolumeGroupLabel
	}
	if spec.CSISnapshotTimeout.Duration == 0 {
		spec.CSISnapshotTimeout.Duration = SnapshotTimeout
	}
	if ptr.Deref(spec.DefaultVolumesToRestic, false) { //nolint:staticcheck // old Schedules have it
		spec.DefaultVolumesToFsBackup = ptr.To(true)
	}
	if spec.DefaultVolumesToFsBackup == nil {
		spec.DefaultVolumesToFsBackup = ptr.To(s.VolumesToFSBackup)
	}
	if spec.SnapshotMoveData == nil {
		spec.SnapshotMoveData = ptr.To(s.SnapshotMoveData)
	}
	spec.ExcludedNamespaces = slices.Concat(spec.ExcludedNamespaces, excluded)
	if s.GlobalPolicies != "" {
		if backup.Annotations == nil {
			backup.Annotations = map[string]string{}
		}
		backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation] = s.GlobalPolicies
	}
	return backup
}

// BackupOf returns the Backup that a Schedule makes. Velero's own builder logs each
// time it is called.
func BackupOf(schedule *velerov1.Schedule) *velerov1.Backup {
	schedule = schedule.DeepCopy()
	backup := &velerov1.Backup{Spec: schedule.Spec.Template}
	backup.Namespace, backup.Name, backup.Annotations = schedule.Namespace, schedule.Name, schedule.Annotations
	backup.Labels = map[string]string{}
	if labels := schedule.Spec.Template.Labels; labels != nil {
		maps.Copy(backup.Labels, labels)
	} else {
		maps.Copy(backup.Labels, schedule.Labels)
	}
	backup.Labels[velerov1.ScheduleNameLabel] = schedule.Name
	return backup
}

// PollInterval returns the interval at which this server looks at a snapshot that
// is not yet cut. The plugins inherit the server's environment.
func PollInterval() time.Duration { return pollInterval(os.Getenv(earlyPolling)) }

func pollInterval(early string) time.Duration {
	if on, err := strconv.ParseBool(early); err == nil && on {
		return time.Second
	}
	return 5 * time.Second
}

// Finalizing reports whether Velero has backed up all items of a backup and only
// calls again for those with an operation.
func Finalizing(backup *velerov1.Backup) bool {
	phase := backup.Status.Phase
	return phase == velerov1.BackupPhaseFinalizing || phase == velerov1.BackupPhaseFinalizingPartiallyFailed
}
