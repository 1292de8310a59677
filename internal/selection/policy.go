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

// action is what a volume policy says of a volume; the zero value is that none
// matches.
type action struct {
	kind       string
	parameters map[string]any
}

func (a action) custom() bool { return a.kind == "custom" }

func (a action) ours() bool {
	return a.custom() && a.parameters[PolicyParameter] == PolicyValue
}

// misspelt is what to tell of an action that seems to mean Stillpoint and does
// not, "" when there is nothing to tell.
func (a action) misspelt() string {
	for _, key := range slices.Sorted(maps.Keys(a.parameters)) {
		value, _ := a.parameters[key].(string)
		if (strings.EqualFold(key, PolicyParameter) && strings.EqualFold(value, PolicyValue)) || strings.Contains(strings.ToLower(value), "stillpoint") {
			return fmt.Sprintf("a volume policy has %s, which is not Stillpoint's; that is parameters {%s: %s}", a, PolicyParameter, PolicyValue)
		}
	}
	return ""
}

// Policies is an error when the resource policies cannot be read, which fails
// the whole backup.
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

// helpers reads the volume policies, once for the backup as Velero does: its
// own ones, and the server's global ones, which Velero puts behind these and a
// plugin finds by the annotation that the backup gets (backup_controller.go of
// Velero 1.18). global is nil where the server has none.
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

// action is that of the first volume policy that matches a claim.
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
			// Without a volume it finds nothing, while Velero goes by the claim.
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

// chosen answers whether Velero's own CSI action takes a snapshot under a
// policy. That action reads the backup's own policies only, so both have a say.
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

// misses answers whether Velero looks for the volume of a claim that has none,
// which is an error: it does unless a volume policy leaves the claim out.
func (s *Selection) misses(claim *corev1.PersistentVolumeClaim) (bool, error) {
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
		// Without a volume it is an error that no policy matches.
		if chosen, err := helper.ShouldPerformSnapshot(item, kuberesource.PersistentVolumeClaims); err == nil {
			return chosen, nil
		}
	}
	return true, nil
}

// LeftOut says why a backup was to leave out the data of a claim, by its volume
// policies and its spec; "" when it was not.
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
