package group

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/api"
)

// A record is a ConfigMap in Velero's namespace that outlives this process. It prevents
// a later process from using the snapshots of an interrupted freeze. The Backup owns it,
// and deleteUnclaimed deletes it.
const (
	recordNamespace = "namespace"
	recordClaims    = "claims" // separated by spaces
	recordPhase     = "phase"
	recordReason    = "reason"
)

// Phases of a record.
const (
	phaseBegun  = "begun"  // the freeze has begun, perhaps with snapshots
	phaseTaken  = "taken"  // all snapshots were cut while frozen
	phaseFailed = "failed" // not all snapshots were cut while frozen
)

// errDied is the error of a group whose process ended during the freeze.
var errDied = errors.New("the plugin process ended while the workload was quiesced, so its snapshots may be from after the thaw")

type record struct {
	*corev1.ConfigMap
	g *group
}

// recordsOnce caches the records of earlier processes of this backup.
type recordsOnce struct {
	sync.Mutex
	read bool
	left []corev1.ConfigMap
}

// failed returns why the snapshots of the record's group cannot be used.
func (r *record) failed() error {
	switch {
	case r == nil, r.Data[recordPhase] == phaseTaken:
		return nil
	case r.Data[recordPhase] == phaseFailed:
		return errors.New(r.Data[recordReason])
	}
	return errDied
}

// earlier returns the record of an earlier process for this group, nil if none.
func (g *group) earlier(ctx context.Context) (*record, error) {
	g.records.Lock()
	defer g.records.Unlock()
	if !g.records.read {
		list, err := g.listRecords(ctx)
		if err != nil {
			return nil, err
		}
		g.records.left, g.records.read = list.Items, true
	}
	for i := range g.records.left {
		left := &g.records.left[i]
		if left.Data[recordNamespace] != g.quiesce.Claims[0].Namespace {
			continue
		}
		claims := strings.Fields(left.Data[recordClaims])
		if !slices.ContainsFunc(g.claims(), func(claim string) bool { return slices.Contains(claims, claim) }) {
			continue
		}
		for _, claim := range g.claims() {
			if !slices.Contains(claims, claim) {
				return nil, fmt.Errorf("claim %s was not there when an earlier plugin process of this backup froze %s", claim, left.Data[recordClaims])
			}
		}
		return &record{left, g}, nil
	}
	return nil, nil //nolint:nilnil // none is a valid answer
}

func (r *run) listRecords(ctx context.Context) (*corev1.ConfigMapList, error) {
	list, err := r.clients.Kube.CoreV1().ConfigMaps(r.backup.Namespace).List(ctx, metav1.ListOptions{LabelSelector: api.LabelBackupUID + "=" + string(r.backup.UID)})
	if err != nil {
		return nil, fmt.Errorf("list the ConfigMaps of backup %s: %w", r.backup.Name, err)
	}
	return list, nil
}

// begin records that a freeze is about to begin.
func (g *group) begin(ctx context.Context) (*record, error) {
	namespace, claims := g.quiesce.Claims[0].Namespace, strings.Join(g.claims(), " ")
	sum := sha256.Sum256([]byte(string(g.backup.UID) + "/" + namespace + "/" + claims))
	configMap, err := g.clients.Kube.CoreV1().ConfigMaps(g.backup.Namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: g.backup.Namespace,
			Name:      "stillpoint-group-" + hex.EncodeToString(sum[:8]),
			Labels:    map[string]string{api.LabelBackupUID: string(g.backup.UID)},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Backup", Name: g.backup.Name, UID: g.backup.UID,
			}},
		},
		Data: map[string]string{recordNamespace: namespace, recordClaims: claims, recordPhase: phaseBegun},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("record the freeze of %s: %w", g.quiesce.Name(), err)
	}
	return &record{configMap, g}, nil
}

// end records the result of a freeze.
func (r *record) end(ctx context.Context, failed error) error {
	data := map[string]string{recordPhase: phaseTaken}
	if failed != nil {
		data = map[string]string{recordPhase: phaseFailed, recordReason: failed.Error()}
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err == nil {
		_, err = r.g.clients.Kube.CoreV1().ConfigMaps(r.Namespace).Patch(ctx, r.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("record how the freeze of %s went: %w", r.g.quiesce.Name(), err)
	}
	return nil
}

// forget deletes the records of a backup whose items are complete.
func (r *run) forget(ctx context.Context) error {
	list, err := r.listRecords(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, configMap := range list.Items {
		err := r.clients.Kube.CoreV1().ConfigMaps(configMap.Namespace).Delete(ctx, configMap.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete ConfigMap %s/%s: %w", configMap.Namespace, configMap.Name, err))
		}
	}
	return errors.Join(errs...)
}
