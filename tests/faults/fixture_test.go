package faults

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/tests/fake"
)

// fixtureVersion is the version whose objects TestFixture writes down. Before a release
// that stores objects otherwise, set it to that version: the directory of the last one
// stays, for tests that the new version works on with what the last one has left.
const fixtureVersion = "0.1.0"

// What a version leaves in a cluster is an interface to the next: the objects of three
// backups (exported with kept snapshots, local, around Velero's own snapshots), and of a
// process that dies in the middle of a freeze.
func TestFixture(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	mover(bed)
	bed.Configure("version: v1\nlocalSnapshots:\n- match: {namespaces: [shop]}\n  policy: keepLast\n  count: 2\n")
	bed.API.Update("namespaces", "", fake.VeleroNamespace, func(o *unstructured.Unstructured) { o.SetUID(uidOf("Namespace", o.GetName())) })
	quiesced := map[string]string{"stillpoint.io/quiesce": "fsfreeze"}
	shop := bed.Deploy(fake.App{Namespace: "shop", Annotations: quiesced, Volumes: 2, Claim: knownClaim})
	office := bed.Deploy(fake.App{Namespace: "office", Kind: "StatefulSet", Annotations: quiesced, Claim: knownClaim})
	backUp := func(name string, app *fake.Workload, changes ...func(*velerov1.Backup)) {
		backup := bed.Backup(append(changes, fake.Named(name), func(b *velerov1.Backup) { b.UID = uidOf("Backup", name) })...)
		v := bed.Velero()
		result := v.Backup(backup, app)
		require.Empty(t, result.Dropped)
		require.Empty(t, v.Errors())
	}

	var frozen []unstructured.Unstructured
	remove := bed.API.Inject(func(r fake.Request) error {
		if r.Verb == "create" && r.Resource.Resource == "volumesnapshots" && frozen == nil {
			frozen = slices.Concat(bed.API.All("configmaps"), bed.API.All("secrets"))
		}
		return nil
	})
	backUp("exported", shop, moving)
	remove()
	backUp("local", office, fake.WithPolicy)
	backUp("around", office)
	var left []unstructured.Unstructured
	for _, resource := range []string{"backups", "volumesnapshots", "volumesnapshotcontents", "datauploads", "configmaps", "secrets"} {
		left = append(left, bed.API.All(resource)...)
	}

	known := stable(bed, slices.Concat(left, frozen))
	for file, objects := range map[string][]unstructured.Unstructured{"frozen.yaml": frozen, "backups.yaml": left} {
		got := document(t, objects, known)
		path := filepath.Join("..", "testdata", fixtureVersion, file)
		if os.Getenv("UPDATE_GOLDEN") != "" {
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), got, "set UPDATE_GOLDEN=1 to accept")
	}
}

// uidOf is the same UID each time.
func uidOf(kind, name string) types.UID {
	return types.UID(uuid.NewSHA1(uuid.NameSpaceURL, []byte(kind+" "+name)).String())
}

// knownClaim gives a claim and its volume UIDs that are the same each time: names of
// VolumeSnapshots are made of them.
func knownClaim(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
	claim.UID = uidOf("PersistentVolumeClaim", claim.Namespace+"/"+claim.Name)
	claim.Spec.VolumeName = "pvc-" + string(claim.UID)
	volume.Name, volume.UID = claim.Spec.VolumeName, uidOf("PersistentVolume", claim.Spec.VolumeName)
	volume.Spec.CSI.VolumeHandle, volume.Spec.ClaimRef.UID = "vol-"+string(claim.UID), claim.UID
}

// stable says what stands in the fixture for names and UIDs that are different each time.
func stable(bed *fake.Bed, objects []unstructured.Unstructured) *strings.Replacer {
	for _, resource := range []string{"namespaces", "deployments", "replicasets", "statefulsets", "pods"} {
		objects = append(objects, bed.API.All(resource)...)
	}
	names := map[string]string{}
	for _, o := range objects {
		name := o.GetName()
		subject, _, _ := unstructured.NestedString(o.Object, "spec", "sourcePVC")
		if o.GetKind() == "VolumeSnapshot" {
			subject, _, _ = unstructured.NestedString(o.Object, "spec", "source", "persistentVolumeClaimName")
		}
		switch {
		case o.GetKind() == "VolumeSnapshotContent": // named after the VolumeSnapshot's UID
			namespace, _, _ := unstructured.NestedString(o.Object, "spec", "volumeSnapshotRef", "namespace")
			snapshot, _, _ := unstructured.NestedString(o.Object, "spec", "volumeSnapshotRef", "name")
			if known, ok := names[snapshot]; ok {
				snapshot = known
			}
			name = namespace + "/" + snapshot
		case o.GetGenerateName() != "":
			names[name] = o.GetGenerateName() + string(uidOf(o.GetKind(), subject))[:5]
			name = names[name]
		case o.GetKind() == "Secret":
			names[name] = "stillpoint-intent-0123456789"
			name = names[name]
		}
		if uid := string(o.GetUID()); uid != "" {
			names[uid] = string(uidOf(o.GetKind(), o.GetNamespace()+"/"+name))
		}
	}
	for _, fixed := range []string{"exported", "local", "around"} {
		delete(names, string(uidOf("Backup", fixed)))
	}
	delete(names, string(uidOf("Namespace", fake.VeleroNamespace)))
	var pairs []string
	for from, to := range names {
		pairs = append(pairs, from, to)
	}
	return strings.NewReplacer(pairs...)
}

var (
	aTime   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	aMoment = regexp.MustCompile(`creationTime: \d+`)
	aHolder = regexp.MustCompile(`(?s)"holder": \{.*?\}`)
)

// document is YAML of objects, without what is different each time.
func document(t *testing.T, objects []unstructured.Unstructured, known *strings.Replacer) string {
	t.Helper()
	var documents []string
	for _, object := range objects {
		if object.GetName() == fake.Policy {
			continue // an administrator's
		}
		o := object.DeepCopy()
		o.SetResourceVersion("")
		if data, ok, _ := unstructured.NestedStringMap(o.Object, "data"); ok && o.GetKind() == "Secret" {
			readable := map[string]any{}
			for key, value := range data {
				text, err := base64.StdEncoding.DecodeString(value)
				require.NoError(t, err)
				var indented bytes.Buffer
				require.NoError(t, json.Indent(&indented, text, "", "  "))
				readable[key] = aHolder.ReplaceAllString(indented.String(), `"holder": {"host": "velero-0", "pid": 31, "started": 1355149}`) + "\n"
			}
			delete(o.Object, "data")
			o.Object["stringData"] = readable
		}
		text, err := yaml.Marshal(o.Object)
		require.NoError(t, err)
		timeless := aTime.ReplaceAllString(known.Replace(string(text)), "2026-11-30T12:00:00Z")
		documents = append(documents, aMoment.ReplaceAllString(timeless, "creationTime: 1796040000000000000"))
	}
	slices.Sort(documents)
	return strings.Join(documents, "---\n")
}
