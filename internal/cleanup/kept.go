package cleanup

import (
	"context"
	"slices"
	"strconv"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/snapshot"
)

// Surplus returns the kept snapshots that a new one of the same claim replaces. If the
// storage has not cut the new one, it returns that one. failed reports that the upload
// of the new one failed. Surplus reads only the claim's namespace. A snapshot counts
// only if its content has the marks, too.
func Surplus(ctx context.Context, clients *cluster.Clients, kept *snapshotv1.VolumeSnapshot, failed bool) ([]snapshot.Target, error) {
	if kept.Status == nil || kept.Status.CreationTime == nil {
		return []snapshot.Target{snapshot.TargetOf(kept)}, nil
	}
	installation, err := clients.Installation(ctx)
	if err != nil {
		return nil, err
	}
	claim := kept.Labels[api.LabelKept]
	uploads, err := cluster.All[velerov2alpha1.DataUpload](ctx, "DataUploads", "",
		clients.Velero(&velerov2alpha1.DataUploadList{}, crclient.MatchingLabels{velerov1.PVCUIDLabel: claim}))
	if err != nil {
		return nil, err
	}
	failures := map[string]bool{} // by the UID of the backup
	for i := range uploads {
		failures[uploads[i].Labels[velerov1.BackupUIDLabel]] = Ended(&uploads[i]) && uploads[i].Status.Phase != velerov2alpha1.DataUploadPhaseCompleted
	}
	failures[kept.Labels[velerov1.BackupUIDLabel]] = failed
	all, err := snapshot.List(ctx, clients.Snapshots, kept.Namespace, snapshot.Of(installation).String()+","+api.LabelKept+"="+claim)
	if err != nil {
		return nil, err
	}
	var pairs []snapshot.Pair
	for i := range all {
		content, err := snapshot.ContentOf(ctx, clients.Snapshots, &all[i])
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, snapshot.Pair{Snapshot: &all[i], Content: content})
	}
	var targets []snapshot.Target
	for _, vs := range surplus(counted(pairs, claim), func(vs *snapshotv1.VolumeSnapshot) bool { return failures[vs.Labels[velerov1.BackupUIDLabel]] }) {
		targets = append(targets, snapshot.TargetOf(&vs))
	}
	return targets, nil
}

// counted returns the pairs that are certainly kept snapshots of a claim, with the
// number on the content.
func counted(pairs []snapshot.Pair, claim string) (kept []snapshotv1.VolumeSnapshot) {
	for _, p := range pairs {
		if _, marked, err := p.Origin(""); p.Snapshot == nil || p.Content == nil || !marked || err != nil || p.Kept() != claim {
			continue
		}
		vs := p.Snapshot.DeepCopy()
		if p.Content.Labels[api.LabelKept] != "" { // earlier releases did not set it
			vs.Annotations[api.AnnotationKeepLast] = p.Content.Annotations[api.AnnotationKeepLast]
		}
		kept = append(kept, *vs)
	}
	return kept
}

// surplus judges the kept snapshots of a claim. The newest one has the number to keep.
// Snapshots without a number do not count, and stay. A snapshot whose upload failed does
// not count either. It stays while it is newer than the oldest counted one, up to the
// same number.
func surplus(kept []snapshotv1.VolumeSnapshot, failed func(*snapshotv1.VolumeSnapshot) bool) (surplus []snapshotv1.VolumeSnapshot) {
	numbered := slices.DeleteFunc(slices.Clone(kept), func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Annotations[api.AnnotationKeepLast] == "" || vs.Status == nil || vs.Status.CreationTime == nil
	})
	slices.SortFunc(numbered, func(a, b snapshotv1.VolumeSnapshot) int {
		return b.Status.CreationTime.Compare(a.Status.CreationTime.Time)
	})
	if len(numbered) == 0 {
		return nil
	}
	last, err := strconv.Atoi(numbered[0].Annotations[api.AnnotationKeepLast])
	if err != nil || last < 1 {
		return nil
	}
	good, bad := 0, 0
	for i := range numbered {
		count := &good
		if failed(&numbered[i]) {
			count = &bad
		}
		if good >= last || *count >= last {
			surplus = append(surplus, numbered[i])
			continue
		}
		*count++
	}
	return surplus
}
