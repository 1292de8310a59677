package selection

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/client"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// scene is a claim that Velero would snapshot. Each test changes one thing.
type scene struct {
	csi     bool
	backup  *velerov1.Backup
	claim   *corev1.PersistentVolumeClaim
	volume  *corev1.PersistentVolume
	pod     *corev1.Pod
	class   *storagev1.StorageClass
	classes []*unstructured.Unstructured // VolumeSnapshotClasses
	others  []runtime.Object
}

func newScene() *scene {
	class := "fast"
	return &scene{
		csi:    true,
		backup: &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", Annotations: map[string]string{}}},
		claim: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Labels: map[string]string{"app": "db"}, Annotations: map[string]string{}},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-data", StorageClassName: &class},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		volume: &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-data"},
			Spec: corev1.PersistentVolumeSpec{
				ClaimRef:               &corev1.ObjectReference{Namespace: "shop", Name: "data"},
				StorageClassName:       "fast",
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com"}},
			},
		},
		pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", Labels: map[string]string{"tier": "back"}, Annotations: map[string]string{}},
			Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
			}}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning},
		},
		class:   &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: "csi.example.com"},
		classes: []*unstructured.Unstructured{snapshotClass("snap", "csi.example.com")},
	}
}

func snapshotClass(name, driver string, labels ...string) *unstructured.Unstructured {
	class := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "driver": driver, "deletionPolicy": "Delete",
	}}
	class.SetName(name)
	of := map[string]string{}
	for _, l := range labels {
		of[l] = "true"
	}
	class.SetLabels(of)
	return class
}

// policies adds a ConfigMap with a volume policy per line: a condition and an
// action, as in "storageClass: [fast] → snapshot".
func (s *scene) policies(name string, lines ...string) {
	text := "version: v1\nvolumePolicies:\n"
	for _, line := range lines {
		condition, action, _ := strings.Cut(line, " → ")
		text += "- conditions: {" + condition + "}\n  action: {type: " + action + "}\n"
	}
	s.others = append(s.others, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name}, Data: map[string]string{"p.yaml": text}})
}

func (s *scene) own(lines ...string) {
	s.policies("own", lines...)
	s.backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "own"}
}

func (s *scene) global(lines ...string) {
	s.policies("global", lines...)
	s.backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation] = "global"
}

func (s *scene) selection(t *testing.T) *Selection {
	t.Helper()
	objects := s.others
	for _, o := range []crclient.Object{s.claim, s.volume, s.pod, s.class} {
		if o.GetName() != "" {
			objects = append(objects, o)
		}
	}
	for _, class := range s.classes {
		objects = append(objects, class)
	}
	return New(fake.NewClientBuilder().WithScheme(veleroScheme(t)).WithRuntimeObjects(objects...).Build(), s.csi, s.backup)
}

// veleroScheme returns the scheme of Velero's own client, which selection gets. No server
// is contacted.
func veleroScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	known.Do(func() {
		config := filepath.Join(t.TempDir(), "config")
		require.NoError(t, os.WriteFile(config, []byte(`{
			"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
			"contexts": [{"name": "c", "context": {"cluster": "c"}}],
			"current-context": "c"
		}`), 0o600))
		t.Setenv("KUBECONFIG", config)
		made, err := client.NewFactory("stillpoint", client.VeleroConfig{}).KubebuilderClient()
		require.NoError(t, err)
		knownScheme = made.Scheme()
	})
	return knownScheme
}

var (
	known       sync.Once
	knownScheme *runtime.Scheme
)

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

func nodeAgent(ready int32) runtime.Object {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "node-agent"}, Status: appsv1.DaemonSetStatus{NumberReady: ready}}
}

const (
	leftOut     = "a volume policy, fs-backup or snapshotVolumes=false leaves it out"
	notSelected = "the backup's label selector does not match it"
	noClaims    = "the backup leaves out persistentvolumeclaims"
	noNamespace = "namespace shop is not in the backup"
	fast        = "storageClass: [fast]"
	slow        = "storageClass: [slow]"
)

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func tier(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"tier": name}}
}

// mountBeside makes the pod mount another claim.
func (s *scene) mountBeside(name string, labels map[string]string, phase corev1.PersistentVolumeClaimPhase) {
	s.pod.Spec.NodeName = "node"
	s.pod.Spec.Volumes = append(s.pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
	}})
	s.others = append(s.others, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase},
	})
}

// failing are the cases in which Velero's CSI action fails.
var failing = []string{
	"pending", "lost", "no storage class", "storage class gone", "no VolumeSnapshotClass", "data mover, nothing ready", "data mover, no node-agent",
}

func TestSnapshots(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *scene)
		reason string
	}{
		"as it is": {func(*scene) {}, ""},

		"finalizing":            {func(s *scene) { s.backup.Status.Phase = velerov1.BackupPhaseFinalizing }, "the backup is finalizing"},
		"finalizing, failed":    {func(s *scene) { s.backup.Status.Phase = velerov1.BackupPhaseFinalizingPartiallyFailed }, "the backup is finalizing"},
		"in progress":           {func(s *scene) { s.backup.Status.Phase = velerov1.BackupPhaseInProgress }, ""},
		"no CSI":                {func(s *scene) { s.csi = false }, "the Velero server runs without --features=EnableCSI, and no VolumeSnapshotLocation of the backup takes it through Stillpoint"},
		"pending":               {func(s *scene) { s.claim.Status.Phase = corev1.ClaimPending }, "the claim is Pending"},
		"lost":                  {func(s *scene) { s.claim.Status.Phase = corev1.ClaimLost }, "the claim is Lost"},
		"no storage class":      {func(s *scene) { s.claim.Spec.StorageClassName = nil }, "the claim has no storage class, which Velero needs to find a VolumeSnapshotClass"},
		"storage class gone":    {func(s *scene) { s.class.Name = "" }, "StorageClass fast is gone"},
		"not a CSI volume":      {func(s *scene) { s.volume.Spec.CSI, s.volume.Spec.NFS = nil, &corev1.NFSVolumeSource{} }, "PersistentVolume pv-data is not a CSI volume"},
		"excluded by its label": {func(s *scene) { s.claim.Labels["velero.io/exclude-from-backup"] = "true" }, "the claim has the label velero.io/exclude-from-backup"},
		"label false":           {func(s *scene) { s.claim.Labels["velero.io/exclude-from-backup"] = "false" }, ""},

		"namespace named":      {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"office", "shop"} }, ""},
		"namespace not named":  {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"office", "shop-2"} }, noNamespace},
		"all namespaces":       {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"*"} }, ""},
		"namespace glob":       {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"sh*"} }, ""},
		"namespace other glob": {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"shop-*", "?hop-"} }, noNamespace},
		"namespace excluded":   {func(s *scene) { s.backup.Spec.ExcludedNamespaces = []string{"shop"} }, noNamespace},
		"namespace glob excluded": {func(s *scene) {
			s.backup.Spec.IncludedNamespaces, s.backup.Spec.ExcludedNamespaces = []string{"*"}, []string{"s?op"}
		}, noNamespace},
		"other excluded": {func(s *scene) { s.backup.Spec.ExcludedNamespaces = []string{"kube-*"} }, ""},

		"claims named":              {func(s *scene) { s.backup.Spec.IncludedResources = []string{"pods", "pvc"} }, ""},
		"claims not named":          {func(s *scene) { s.backup.Spec.IncludedResources = []string{"pods", "deployments"} }, noClaims},
		"all resources":             {func(s *scene) { s.backup.Spec.IncludedResources = []string{"*"} }, ""},
		"claims excluded":           {func(s *scene) { s.backup.Spec.ExcludedResources = []string{"persistentvolumeclaims"} }, noClaims},
		"claims named, scoped":      {func(s *scene) { s.backup.Spec.IncludedNamespaceScopedResources = []string{"persistentvolumeclaims"} }, ""},
		"claims not named, scoped":  {func(s *scene) { s.backup.Spec.IncludedNamespaceScopedResources = []string{"secrets"} }, noClaims},
		"claims excluded, scoped":   {func(s *scene) { s.backup.Spec.ExcludedNamespaceScopedResources = []string{"pvc"} }, noClaims},
		"everything excluded":       {func(s *scene) { s.backup.Spec.ExcludedNamespaceScopedResources = []string{"*"} }, noClaims},
		"cluster scope is no scope": {func(s *scene) { s.backup.Spec.IncludedClusterScopedResources = []string{"persistentvolumes"} }, ""},

		"label selector":               {func(s *scene) { s.backup.Spec.LabelSelector = app("db") }, ""},
		"label selector, no match":     {func(s *scene) { s.backup.Spec.LabelSelector = app("web") }, notSelected},
		"one of the label selectors":   {func(s *scene) { s.backup.Spec.OrLabelSelectors = []*metav1.LabelSelector{app("web"), app("db")} }, ""},
		"none of the label selectors":  {func(s *scene) { s.backup.Spec.OrLabelSelectors = []*metav1.LabelSelector{app("web"), app("x")} }, notSelected},
		"by its pod":                   {func(s *scene) { s.backup.Spec.LabelSelector = tier("back") }, ""},
		"by its pod, one of selectors": {func(s *scene) { s.backup.Spec.OrLabelSelectors = []*metav1.LabelSelector{app("x"), tier("back")} }, ""},
		"by a pod that is excluded": {func(s *scene) {
			s.backup.Spec.LabelSelector, s.pod.Labels["velero.io/exclude-from-backup"] = tier("back"), "true"
		}, notSelected},
		"by its pod, without pods": {func(s *scene) {
			s.backup.Spec.LabelSelector, s.backup.Spec.ExcludedResources = tier("back"), []string{"po"}
		}, notSelected},
		"by its pod, which may not bring an excluded claim": {func(s *scene) {
			s.backup.Spec.LabelSelector, s.claim.Labels["velero.io/exclude-from-backup"] = tier("back"), "true"
		}, "the claim has the label velero.io/exclude-from-backup"},
		"by a pod with another claim": {func(s *scene) {
			s.backup.Spec.LabelSelector, s.pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = tier("back"), "other"
		}, notSelected},
		"by a pod that comes with another claim": {func(s *scene) {
			s.backup.Spec.LabelSelector = app("web")
			s.mountBeside("logs", app("web").MatchLabels, corev1.ClaimBound)
		}, ""},
		"by a pod that comes with no claim, as that is not bound": {func(s *scene) {
			s.backup.Spec.LabelSelector = app("web")
			s.mountBeside("logs", app("web").MatchLabels, corev1.ClaimPending)
		}, notSelected},
		"by a pod that does not run, and so does not come with another claim": {func(s *scene) {
			s.backup.Spec.LabelSelector = app("web")
			s.mountBeside("logs", app("web").MatchLabels, corev1.ClaimBound)
			s.pod.Status.Phase = corev1.PodPending
		}, notSelected},
		"being deleted": {func(s *scene) {
			s.claim.Finalizers, s.claim.DeletionTimestamp = []string{"x/y"}, &metav1.Time{Time: time.Unix(1, 0)}
		}, "it is being deleted"},
		"by another namespace's pod": {func(s *scene) {
			s.backup.Spec.LabelSelector, s.pod.Namespace = tier("back"), "office"
		}, notSelected},

		"snapshotVolumes=false": {func(s *scene) { s.backup.Spec.SnapshotVolumes = no() }, leftOut},
		"snapshotVolumes=true":  {func(s *scene) { s.backup.Spec.SnapshotVolumes = yes() }, ""},
		"fs-backup by default":  {func(s *scene) { s.backup.Spec.DefaultVolumesToFsBackup = yes() }, leftOut},
		"but not of this volume": {func(s *scene) {
			s.backup.Spec.DefaultVolumesToFsBackup = yes()
			s.pod.Annotations["backup.velero.io/backup-volumes-excludes"] = "v"
		}, ""},
		"fs-backup of the volume": {func(s *scene) { s.pod.Annotations["backup.velero.io/backup-volumes"] = "v" }, leftOut},

		"policy skip":      {func(s *scene) { s.own(fast + " → skip") }, leftOut},
		"policy fs-backup": {func(s *scene) { s.own(fast + " → fs-backup") }, leftOut},
		"policy custom":    {func(s *scene) { s.own(fast + " → custom") }, "a volume policy hands it to another snapshotter (action custom, parameters {})"},
		"policy custom of another vendor": {
			func(s *scene) { s.own(fast + " → custom, parameters: {snapshotter: acme, x: 1}") },
			"a volume policy hands it to another snapshotter (action custom, parameters {snapshotter: acme, x: 1})",
		},
		"policy snapshot":                      {func(s *scene) { s.own(fast + " → snapshot") }, ""},
		"policy snapshot over snapshotVolumes": {func(s *scene) { s.own(fast + " → snapshot"); s.backup.Spec.SnapshotVolumes = no() }, ""},
		"policy of another class":              {func(s *scene) { s.own(slow + " → skip") }, ""},
		"the first policy counts":              {func(s *scene) { s.own(fast+" → snapshot", "csi: {} → skip") }, ""},

		"global skip":                     {func(s *scene) { s.global(fast + " → skip") }, leftOut},
		"global snapshot":                 {func(s *scene) { s.global(fast + " → snapshot") }, ""},
		"global of another class":         {func(s *scene) { s.global(slow + " → skip") }, ""},
		"own before global":               {func(s *scene) { s.own(fast + " → snapshot"); s.global("csi: {} → skip") }, ""},
		"own skip before global":          {func(s *scene) { s.own(fast + " → skip"); s.global("csi: {} → snapshot") }, leftOut},
		"own does not match, global skip": {func(s *scene) { s.own(slow + " → snapshot"); s.global(fast + " → skip") }, leftOut},
		"neither matches":                 {func(s *scene) { s.own(slow + " → skip"); s.global(slow + " → skip") }, ""},
		// Velero's CSI action evaluates only the own policies of the backup, and both must
		// allow it.
		"global snapshot does not undo snapshotVolumes=false": {func(s *scene) { s.global(fast + " → snapshot"); s.backup.Spec.SnapshotVolumes = no() }, leftOut},

		"VolumeSnapshotClass by its label": {func(s *scene) {
			s.classes = append(s.classes, snapshotClass("snap-2", "csi.example.com", velerov1.VolumeSnapshotClassSelectorLabel))
		}, ""},
		"no VolumeSnapshotClass": {
			func(s *scene) { s.classes = []*unstructured.Unstructured{snapshotClass("other", "csi.example.org")} },
			"Velero finds no VolumeSnapshotClass: error getting VolumeSnapshotClass: failed to get VolumeSnapshotClass for provisioner csi.example.com: " +
				"ensure that the desired VolumeSnapshotClass has the velero.io/csi-volumesnapshot-class label or snapshot.storage.kubernetes.io/is-default-class annotation, " +
				"and that its driver matches the StorageClass provisioner",
		},

		"data mover":                   {func(s *scene) { s.backup.Spec.SnapshotMoveData = yes(); s.others = append(s.others, nodeAgent(1)) }, ""},
		"data mover, nothing ready":    {func(s *scene) { s.backup.Spec.SnapshotMoveData = yes(); s.others = append(s.others, nodeAgent(0)) }, "the data mover is not ready: node-agent is not ready: no ready pods found"},
		"data mover, no node-agent":    {func(s *scene) { s.backup.Spec.SnapshotMoveData, s.backup.Spec.DataMover = yes(), "velero" }, "the data mover is not ready: node-agent is not ready: no ready pods found"},
		"data mover of another vendor": {func(s *scene) { s.backup.Spec.SnapshotMoveData, s.backup.Spec.DataMover = yes(), "acme" }, ""},
		"a data mover that is not on":  {func(s *scene) { s.backup.Spec.SnapshotMoveData = no() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			test.change(s)
			verdict, err := s.selection(t).Of(t.Context(), s.claim)
			require.NoError(t, err)
			want := Verdict{Path: None, Reason: test.reason, Fails: slices.Contains(failing, name)}
			if test.reason == "" {
				want.Path = Velero
			}
			// Velero also calls actions for the volume, unless a list of kinds lacks it.
			assert.Equal(t, name == "claims named", verdict.Uncalled != nil)
			verdict.Uncalled, verdict.Excluded = nil, false
			assert.Equal(t, want, verdict)
		})
	}
}

// Velero requires the volume of each claim that no policy skips.
func TestFailsWithoutVolume(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *scene)
		fails  bool
	}{
		"no policy":         {func(*scene) {}, true},
		"own skip":          {func(s *scene) { s.own("pvcPhase: [Pending] → skip") }, false},
		"own snapshot":      {func(s *scene) { s.own("pvcPhase: [Pending] → snapshot") }, true},
		"own of another":    {func(s *scene) { s.own("pvcPhase: [Lost] → skip") }, true},
		"global skip":       {func(s *scene) { s.global("pvcPhase: [Pending] → skip") }, false},
		"own before global": {func(s *scene) { s.own("pvcPhase: [Pending] → snapshot"); s.global("pvcPhase: [Pending] → skip") }, true},
		"not in the backup": {func(s *scene) { s.backup.Spec.LabelSelector = app("web") }, false},
		"no class, but skipped": {func(s *scene) {
			s.own("csi: {} → skip")
			s.claim.Spec.StorageClassName = nil
			s.claim.Status.Phase = corev1.ClaimBound
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.pending()
			test.change(s)
			if s.claim.Status.Phase == corev1.ClaimBound {
				s.claim.Spec.VolumeName = "pv-data"
			}
			verdict, err := s.selection(t).Of(t.Context(), s.claim)
			require.NoError(t, err)
			assert.Equal(t, None, verdict.Path)
			assert.Equal(t, test.fails, verdict.Fails, verdict.Reason)
		})
	}
}

func TestMisspelt(t *testing.T) {
	for parameters, warned := range map[string]bool{
		"{snapshotter: acme.io}":             false,
		"{}":                                 false,
		"{snapshotter: stillpoint}":          true,
		"{snapshotter: Stillpoint.io}":       true,
		"{PolicyValue: stillpoint.io}":       true,
		"{snapshoter: stillpoint.io}":        true,
		"{snapshotter: [stillpoint.io]}":     false,
		"{mover: acme.io, snapshotter: 1}":   false,
		"{snapshotter: acme.io/still-point}": false,
	} {
		t.Run(parameters, func(t *testing.T) {
			s := newScene()
			s.own(fast + " → custom, parameters: " + parameters)
			verdict, err := s.selection(t).Of(t.Context(), s.claim)
			require.NoError(t, err)
			assert.Equal(t, None, verdict.Path)
			if !warned {
				assert.Empty(t, verdict.Warning)
				return
			}
			assert.Contains(t, verdict.Warning, "which is not Stillpoint's; that is parameters {snapshotter: stillpoint.io}")
		})
	}
}

func TestSnapshotsSaysWhatCannotBeRead(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *scene)
		text   string
	}{
		"volume": {func(s *scene) { s.volume.Name = "" }, `get PersistentVolume pv-data: persistentvolumes "pv-data" not found`},
		"own policy": {
			func(s *scene) {
				s.backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "ConfigMap", Name: "own"}
			},
			`read the volume policies of backup nightly: failed to get volume policies from backup: fail to get ResourcePolicies velero/own ConfigMap: configmaps "own" not found`,
		},
		"global policy": {
			func(s *scene) { s.backup.Annotations[velerov1.GlobalBackupVolumePolicyConfigMapAnnotation] = "global" },
			`read the volume policies of backup nightly: failed to get volume policies from backup: fail to get ResourcePolicies velero/global ConfigMap: configmaps "global" not found`,
		},
		"policy": {
			func(s *scene) { s.own(fast + " → snap") },
			"read the volume policies of backup nightly: failed to get volume policies from backup: fail to validate ResourcePolicies in ConfigMap velero/nightly: invalid action type snap",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			test.change(s)
			_, err := s.selection(t).Of(t.Context(), s.claim)
			require.EqualError(t, err, test.text)
		})
	}
}

const ours = " → custom, parameters: {snapshotter: stillpoint.io}"

func TestHandedToStillpoint(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *scene)
		path   Path
		text   string // of the obstacle
	}{
		"own policy":               {func(s *scene) { s.own(fast + ours) }, Group, ""},
		"global policy":            {func(s *scene) { s.global(fast + ours) }, Group, ""},
		"own does not match":       {func(s *scene) { s.own(slow + " → skip"); s.global(fast + ours) }, Group, ""},
		"own snapshot before":      {func(s *scene) { s.own(fast + " → snapshot"); s.global(fast + ours) }, Velero, ""},
		"own skip before":          {func(s *scene) { s.own(fast + " → skip"); s.global(fast + ours) }, None, ""},
		"own before global":        {func(s *scene) { s.own(fast + ours); s.global(fast + " → snapshot") }, Group, ""},
		"another class":            {func(s *scene) { s.own(slow + ours) }, Velero, ""},
		"snapshotVolumes=false":    {func(s *scene) { s.own(fast + ours); s.backup.Spec.SnapshotVolumes = no() }, Group, ""},
		"not in the backup":        {func(s *scene) { s.own(fast + ours); s.backup.Spec.LabelSelector = app("web") }, None, ""},
		"finalizing":               {func(s *scene) { s.own(fast + ours); s.backup.Status.Phase = velerov1.BackupPhaseFinalizing }, None, ""},
		"storage class gone":       {func(s *scene) { s.own(fast + ours); s.class.Name = "" }, Group, ""},
		"pending, left out before": {func(s *scene) { s.own("pvcLabels: {app: db} → skip", "csi: {}"+ours); s.pending() }, None, ""},
		"pending": {
			func(s *scene) { s.own("pvcLabels: {app: db}" + ours); s.pending() }, Group,
			"claim shop/data is Pending: there is no volume to snapshot; bind or delete it, or leave it out by a volume policy with action skip before the entry with action custom",
		},
		"lost": {
			func(s *scene) { s.own("pvcLabels: {app: db}" + ours); s.claim.Status.Phase = corev1.ClaimLost }, Group,
			"claim shop/data is Lost: there is no volume to snapshot; bind or delete it, or leave it out by a volume policy with action skip before the entry with action custom",
		},
		"not a CSI volume": {
			func(s *scene) {
				s.own(fast + ours)
				s.volume.Spec.CSI, s.volume.Spec.NFS = nil, &corev1.NFSVolumeSource{}
			}, Group,
			"claim shop/data: PersistentVolume pv-data is not a CSI volume, which is all that Stillpoint can snapshot; " +
				"add the condition csi: {} to the entry with action custom, or an entry with action fs-backup or skip before it",
		},
		"no CSI": {
			func(s *scene) { s.own(fast + ours); s.csi = false }, Group,
			"claim shop/data: the Velero server runs without --features=EnableCSI, which restoring a VolumeSnapshot needs",
		},
		"a group of Velero's": {
			func(s *scene) { s.own(fast + ours); s.backup.Spec.VolumeGroupSnapshotLabelKey = "app" }, Group,
			"claim shop/data has the label app=db, by which Velero takes a VolumeGroupSnapshot, and a volume policy hands it to Stillpoint; " +
				"take the label away, or leave the claim to Velero by an entry before the one with action custom:\n" +
				"- conditions:\n    pvcLabels: {app: db}\n  action:\n    type: snapshot",
		},
		"a group of Velero's, left to it": {
			func(s *scene) {
				s.own("pvcLabels: {app: db} → snapshot", fast+ours)
				s.backup.Spec.VolumeGroupSnapshotLabelKey = "app"
			}, Velero, "",
		},
		"data mover": {func(s *scene) {
			s.own(fast + ours)
			s.backup.Spec.SnapshotMoveData = yes()
			s.others = append(s.others, nodeAgent(1))
		}, Group, ""},
		"data mover, no node-agent": {
			func(s *scene) { s.own(fast + ours); s.backup.Spec.SnapshotMoveData = yes() }, Group,
			"claim shop/data: the data mover is not ready: node-agent is not ready: no ready pods found",
		},
		"data mover, no storage class": {
			func(s *scene) {
				s.own("csi: {}" + ours)
				s.backup.Spec.SnapshotMoveData, s.claim.Spec.StorageClassName = yes(), nil
			}, Group,
			`claim shop/data has no storageClassName, not even an empty one, and Velero's own action drops such a claim from the backup; create it again with a StorageClass, or with storageClassName: "" and the volumeName pv-data`,
		},
		"data mover, no StorageClass of the driver": {
			func(s *scene) {
				s.own("csi: {}" + ours)
				s.backup.Spec.SnapshotMoveData, s.claim.Spec.StorageClassName, s.class.Provisioner = yes(), ptr.To(""), "other.csi"
			}, Group,
			`claim shop/data: Velero's data movement needs a StorageClass: it has no StorageClass that provisions volumes, and there is none of driver csi.example.com for file system "": create one`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			test.change(s)
			verdict, err := s.selection(t).Of(t.Context(), s.claim)
			require.NoError(t, err)
			assert.Equal(t, test.path, verdict.Path)
			if test.text == "" {
				require.NoError(t, verdict.Obstacle)
			} else {
				require.EqualError(t, verdict.Obstacle, test.text)
			}
		})
	}
}

// A claim that Velero calls an action for is in the backup despite its filters.
func TestOfIncluded(t *testing.T) {
	s := newScene()
	s.own(fast + ours)
	s.backup.Spec.LabelSelector = app("web")
	verdict, err := s.selection(t).Of(t.Context(), s.claim)
	require.NoError(t, err)
	assert.Equal(t, Verdict{Path: None, Reason: notSelected, Excluded: true}, verdict)
	verdict, err = s.selection(t).OfIncluded(t.Context(), s.claim)
	require.NoError(t, err)
	assert.Equal(t, Verdict{Path: Group}, verdict)
}

func (s *scene) pending() {
	s.claim.Status.Phase, s.claim.Spec.VolumeName = corev1.ClaimPending, ""
}

func TestPodIsInTheBackup(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *scene)
		in     bool
	}{
		"as it is":        {func(*scene) {}, true},
		"other namespace": {func(s *scene) { s.backup.Spec.IncludedNamespaces = []string{"office"} }, false},
		"no pods":         {func(s *scene) { s.backup.Spec.IncludedResources = []string{"persistentvolumeclaims"} }, false},
		"excluded":        {func(s *scene) { s.pod.Labels["velero.io/exclude-from-backup"] = "true" }, false},
		"selected":        {func(s *scene) { s.backup.Spec.LabelSelector = tier("back") }, true},
		"not selected":    {func(s *scene) { s.backup.Spec.LabelSelector = app("db") }, false},
		"not a selector": {func(s *scene) {
			s.backup.Spec.LabelSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "Is"}}}
		}, false},
		"selected by negate": {func(s *scene) {
			s.backup.Spec.LabelSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "DoesNotExist"}}}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			test.change(s)
			in, err := s.selection(t).Pod(t.Context(), s.pod)
			require.NoError(t, err)
			assert.Equal(t, test.in, in)
		})
	}
}
