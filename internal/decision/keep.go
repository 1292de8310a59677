package decision

import (
	"fmt"
	"strconv"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/config"
)

// Keep says what becomes of a volume's snapshots once its data is exported.
type Keep struct {
	// Second reports that a second snapshot stays beside the export.
	Second bool
	// Last is how many of those there are at the most; 0 is any number.
	Last int
	// Reason names the object and the key that decided.
	Reason string
}

const keepLastPrefix = string(config.LocalSnapshotKeepLast) + "="

// keepOf decides for a claim: its own annotations, then the first rule of the
// configuration that matches, then deletion. A value that is not valid is an
// error that names the claim, key, value and what is valid.
func keepOf(rules []config.LocalSnapshotRule, claim *corev1.PersistentVolumeClaim, driver string, backup *velerov1.Backup) (Keep, error) {
	own, err := annotatedKeep(claim)
	if own != nil || err != nil {
		return ptr.Deref(own, Keep{}), err
	}
	for i, rule := range rules {
		if !rule.Match.Matches(driver, ptr.Deref(claim.Spec.StorageClassName, ""), claim.Namespace, claim.Labels, backup.Labels) {
			continue
		}
		return Keep{
			Second: rule.Policy != config.LocalSnapshotDelete, Last: rule.Count,
			Reason: fmt.Sprintf("localSnapshots[%d] of the configuration", i),
		}, nil
	}
	return Keep{Reason: "the default"}, nil
}

// annotatedKeep is what the claim's annotations say, nil when they say nothing.
func annotatedKeep(claim *corev1.PersistentVolumeClaim) (*Keep, error) {
	invalid := func(key, value, valid string) error {
		return fmt.Errorf("PersistentVolumeClaim %s/%s: annotation %s is %q, must be %s", claim.Namespace, claim.Name, key, value, valid)
	}
	reason := func(key string) string {
		return fmt.Sprintf("annotation %s of PersistentVolumeClaim %s/%s", key, claim.Namespace, claim.Name)
	}
	veto, vetoed := claim.Annotations[api.AnnotationKeepSnapshot]
	value, has := claim.Annotations[api.AnnotationLocalSnapshots]
	switch {
	case vetoed && has:
		return nil, fmt.Errorf("PersistentVolumeClaim %s/%s has both annotation %s and %s; remove one of them",
			claim.Namespace, claim.Name, api.AnnotationKeepSnapshot, api.AnnotationLocalSnapshots)
	case vetoed && veto == "true":
		return &Keep{Second: true, Reason: reason(api.AnnotationKeepSnapshot)}, nil
	case vetoed && veto != "false":
		return nil, invalid(api.AnnotationKeepSnapshot, veto, "true or false")
	case !has:
		return nil, nil //nolint:nilnil // nothing said is a valid answer
	}
	keep := &Keep{Reason: reason(api.AnnotationLocalSnapshots)}
	count, last := strings.CutPrefix(value, keepLastPrefix)
	switch {
	case value == string(config.LocalSnapshotDelete):
	case value == string(config.LocalSnapshotRetain):
		keep.Second = true
	case last:
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 {
			return nil, invalid(api.AnnotationLocalSnapshots, value, "keepLast=<number>, at least 1")
		}
		keep.Second, keep.Last = true, n
	default:
		return nil, invalid(api.AnnotationLocalSnapshots, value, "delete, retain or keepLast=<number>")
	}
	return keep, nil
}
