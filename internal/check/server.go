package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/bracket"
	"stillpoint.io/stillpoint/internal/group"
)

// serverContainer is what `velero install` calls the server's container.
const serverContainer = "velero"

// Server is what a Velero server's flags and environment say of the backups
// that it makes.
type Server struct {
	// Source is where that stands, such as "Deployment velero/velero".
	Source string
	// CSI is the feature EnableCSI.
	CSI bool
	// GlobalPolicies is the ConfigMap of the global volume policies, "" for none.
	GlobalPolicies string
	// What a Backup gets that says nothing of it.
	SnapshotMoveData, VolumesToFSBackup bool
	VolumeGroupLabel                    string
	// Workers is how many item blocks are backed up at the same time.
	Workers int
	// Poll is how often the server looks whether a snapshot has been cut.
	Poll time.Duration
}

// ReadServer reads the Deployment of a server. A flag whose value is not valid
// is an error, as it is to the server.
func ReadServer(deployment *appsv1.Deployment) (Server, error) {
	return readServer(deployment, fmt.Sprintf("Deployment %s/%s", deployment.Namespace, deployment.Name))
}

func readServer(deployment *appsv1.Deployment, source string) (Server, error) {
	server := Server{Source: source, Workers: group.Workers(deployment)}
	containers := deployment.Spec.Template.Spec.Containers
	if len(containers) == 0 {
		return server, fmt.Errorf("%s has no containers", server.Source)
	}
	i := max(0, slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == serverContainer }))
	container := containers[i]
	flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	features := flags.String("features", "", "") // the last one counts, as it does for Velero
	flags.StringVar(&server.GlobalPolicies, "global-backup-volume-policies-configmap", "", "")
	flags.BoolVar(&server.SnapshotMoveData, "default-snapshot-move-data", false, "")
	flags.BoolVar(&server.VolumesToFSBackup, "default-volumes-to-fs-backup", false, "")
	flags.StringVar(&server.VolumeGroupLabel, "volume-group-snapshot-label-key", velerov1.DefaultVGSLabelKey, "")
	if err := flags.Parse(slices.Concat(container.Command, container.Args)); err != nil {
		return server, fmt.Errorf("read the flags of the server in %s: %w", server.Source, err)
	}
	server.CSI = slices.ContainsFunc(strings.Split(*features, ","), func(feature string) bool {
		return strings.TrimSpace(feature) == velerov1.CSIFeatureFlag
	})
	early := ""
	for _, variable := range container.Env {
		if variable.Name == bracket.EarlyPolling {
			early = variable.Value
		}
	}
	server.Poll = bracket.PollInterval(early)
	return server, nil
}

// ServerOf is a server with these arguments, for where its Deployment cannot be
// read. An argument NAME=VALUE is its environment.
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

// Complete is a Backup as the server starts it: with the server's defaults, and
// without the namespaces that are marked to be left out (prepareBackupRequest
// in backup_controller.go of Velero 1.18).
func (s Server) Complete(backup *velerov1.Backup, marked []string) *velerov1.Backup {
	backup = backup.DeepCopy()
	spec := &backup.Spec
	if spec.VolumeGroupSnapshotLabelKey == "" {
		spec.VolumeGroupSnapshotLabelKey = s.VolumeGroupLabel
	}
	if spec.CSISnapshotTimeout.Duration == 0 {
		spec.CSISnapshotTimeout.Duration = group.DefaultTimeout
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
	spec.ExcludedNamespaces = slices.Concat(spec.ExcludedNamespaces, marked)
	if s.GlobalPolicies != "" {
		if backup.Annotations == nil {
			backup.Annotations = map[string]string{}
		}
		backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation] = s.GlobalPolicies
	}
	return backup
}

// ofSchedule is the Backup that a Schedule makes (FromSchedule in pkg/builder
// of Velero 1.18).
func ofSchedule(schedule *velerov1.Schedule) *velerov1.Backup {
	labels := map[string]string{}
	from := schedule.Labels
	if schedule.Spec.Template.Labels != nil {
		from = schedule.Spec.Template.Labels
	}
	for key, value := range from {
		labels[key] = value
	}
	labels[velerov1.ScheduleNameLabel] = schedule.Name
	backup := &velerov1.Backup{Spec: *schedule.Spec.Template.DeepCopy()}
	backup.Namespace, backup.Name = schedule.Namespace, schedule.Name
	backup.Labels = labels
	backup.Annotations = schedule.DeepCopy().Annotations
	return backup
}
