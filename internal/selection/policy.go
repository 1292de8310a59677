package selection

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/utils/volumehelper"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	vhutil "github.com/vmware-tanzu/velero/pkg/util/volumehelper"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// action is the action of a volume policy. It is zero if no policy matches.
type action struct {
	kind       string
	parameters map[string]any
}

func (a action) custom() bool { return a.kind == "custom" }

func (a action) ours() bool {
	return a.custom() && a.parameters[PolicyParameter] == PolicyValue
}

// misspelt returns a warning about a custom action that is similar to Stillpoint's, or "".
func (a action) misspelt() string {
	for _, key := range slices.Sorted(maps.Keys(a.parameters)) {
		value, _ := a.parameters[key].(string)
		if (strings.EqualFold(key, PolicyParameter) && strings.EqualFold(value, PolicyValue)) || strings.Contains(strings.ToLower(value), "stillpoint") {
			return fmt.Sprintf("a volume policy has %s, which is not Stillpoint's; that is parameters {%s: %s}", a, PolicyParameter, PolicyValue)
		}
	}
	return ""
}

// Policies returns an error if the resource policies cannot be read, which fails the whole
// backup.
func (s *Selection) Policies(ctx context.Context) error {
	_, err := s.included(ctx)
	return err
}

func (a action) String() string {
	var parameters []string
	for _, key := range slices.Sorted(maps.Keys(a.parameters)) {
		parameters = append(parameters, fmt.Sprintf("%s: %v", key, a.parameters[key]))
	}
	return fmt.Sprintf("action %s, parameters {%s}", a.kind, strings.Join(parameters, ", "))
}

// helpers reads the volume policies once per backup, as Velero does: the backup's own ones
// and the global ones of the server. Velero evaluates the global ones after the own ones,
// and sets an annotation on the backup that names them (backup_controller.go of Velero
// 1.18). global is nil if the server has none.
func (s *Selection) helpers() (own, global vhutil.VolumeHelper, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		if own, err = s.helper(s.backup); err != nil {
			return nil, nil, err
		}
		if name := s.backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation]; name != "" {
			behind := s.backup.DeepCopy()
			behind.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: name}
			if global, err = s.helper(behind); err != nil {
				return nil, nil, err
			}
		}
		s.own, s.global = own, global
	}
	return s.own, s.global, nil
}

func (s *Selection) helper(backup *velerov1.Backup) (vhutil.VolumeHelper, error) {
	helper, err := volumehelper.NewVolumeHelperWithCache(*backup, s.client, s.log, nil)
	if err != nil {
		return nil, fmt.Errorf("read the volume policies of backup %s: %w", backup.Name, err)
	}
	return helper, nil
}

// action returns the action of the first volume policy that matches a claim.
func (s *Selection) action(claim *corev1.PersistentVolumeClaim) (action, error) {
	own, global, err := s.helpers()
	if err != nil {
		return action{}, err
	}
	item, err := asItem(claim)
	if err != nil {
		return action{}, err
	}
	for _, helper := range []vhutil.VolumeHelper{own, global} {
		if helper == nil {
			continue
		}
		found, kind, parameters, err := helper.GetActionParameters(item, kuberesource.PersistentVolumeClaims)
		if err == nil && !found && claim.Status.Phase != corev1.ClaimBound {
			// Without a volume, GetActionParameters finds no action, while Velero matches
			// the claim.
			ours := action{"custom", map[string]any{PolicyParameter: PolicyValue}}
			found, err = helper.ShouldPerformCustomAction(item, kuberesource.PersistentVolumeClaims, ours.parameters)
			kind, parameters = ours.kind, ours.parameters
		}
		if err != nil {
			return action{}, fmt.Errorf("match the volume policies for claim %s/%s: %w", claim.Namespace, claim.Name, err)
		}
		if found {
			return action{kind, parameters}, nil
		}
	}
	return action{}, nil
}

// chosen reports whether Velero's CSI action takes a snapshot under a policy. That action
// evaluates only the own policies of the backup, so that both must allow it.
func (s *Selection) chosen(claim *corev1.PersistentVolumeClaim, action action) (bool, error) {
	if action.kind != "" && action.kind != "snapshot" {
		return false, nil
	}
	own, _, err := s.helpers()
	if err != nil {
		return false, err
	}
	item, err := asItem(claim)
	if err != nil {
		return false, err
	}
	chosen, err := own.ShouldPerformSnapshot(item, kuberesource.PersistentVolumeClaims)
	if err != nil {
		return false, fmt.Errorf("match the volume policies for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return chosen, nil
}

// failsWithoutVolume reports whether Velero fails because a claim has no volume. It does
// unless a volume policy skips the claim.
func (s *Selection) failsWithoutVolume(claim *corev1.PersistentVolumeClaim) (bool, error) {
	own, global, err := s.helpers()
	if err != nil {
		return false, err
	}
	item, err := asItem(claim)
	if err != nil {
		return false, err
	}
	for _, helper := range []vhutil.VolumeHelper{own, global} {
		if helper == nil {
			continue
		}
		// Without a volume, no matching policy is an error.
		if chosen, err := helper.ShouldPerformSnapshot(item, kuberesource.PersistentVolumeClaims); err == nil {
			return chosen, nil
		}
	}
	return true, nil
}

// LeftOut returns the reason why the volume policies or the spec exclude the data of a
// claim from the backup, or "".
func (s *Selection) LeftOut(claim *corev1.PersistentVolumeClaim) (string, error) {
	action, err := s.action(claim)
	if err != nil {
		return "", err
	}
	switch {
	case action.kind == "skip":
		return "a volume policy skips it", nil
	case action.custom() && !action.ours():
		return fmt.Sprintf("a volume policy hands it to another snapshotter (%s)", action), nil
	case action.kind == "" && boolptr.IsSetToFalse(s.backup.Spec.SnapshotVolumes):
		return "the backup was asked for no snapshots (snapshotVolumes: false)", nil
	}
	return "", nil
}

func asItem(claim *corev1.PersistentVolumeClaim) (runtime.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(claim)
	if err != nil {
		return nil, fmt.Errorf("convert claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return &unstructured.Unstructured{Object: content}, nil
}
