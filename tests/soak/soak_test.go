package soak

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"text/template"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func TestOptions(t *testing.T) {
	_, err := Options{Databases: []string{"oracle"}}.databases()
	require.EqualError(t, err, `no database "oracle"; there are postgresql, mariadb, redis`)
	_, err = Options{Ways: []string{"hope"}}.ways()
	require.EqualError(t, err, `no way "hope"; there are stillpoint, velero-data-first, velero-log-first, stillpoint-one-volume`)

	chosen, err := Options{Ways: Ways()}.ways()
	require.NoError(t, err)
	byVelero := 0
	for _, w := range chosen {
		require.Equal(t, w.quiesce != "", w.promised, "what is quiesced is Stillpoint's: %s", w.name)
		if w.promised {
			require.Equal(t, 20, w.backups(20), w.name)
			continue
		}
		byVelero += w.backups(20)
		require.Equal(t, 1, w.backups(1))
	}
	require.Equal(t, 20, byVelero, "Velero alone makes as many")
}

// Each database lies on the way's volumes, in their order.
func TestManifests(t *testing.T) {
	for _, d := range databases {
		for _, w := range ways {
			text, err := manifests.ReadFile("manifests/" + d.name + ".yaml")
			require.NoError(t, err)
			parsed, err := template.New(d.name).Option("missingkey=error").Parse(string(text))
			require.NoError(t, err)
			var rendered bytes.Buffer
			require.NoError(t, parsed.Execute(&rendered, parameters(d, w, "ns", "secret")))
			var claims, volumes []string
			for decoder := yaml.NewYAMLOrJSONDecoder(&rendered, 4096); ; {
				object := &unstructured.Unstructured{}
				err := decoder.Decode(&object.Object)
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				switch object.GetKind() {
				case "PersistentVolumeClaim":
					claims = append(claims, object.GetName())
				case "StatefulSet":
					found, _, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "volumes")
					require.NoError(t, err)
					for _, volume := range found {
						name, _, err := unstructured.NestedString(volume.(map[string]any), "persistentVolumeClaim", "claimName") //nolint:forcetypeassert // fails the test
						require.NoError(t, err)
						volumes = append(volumes, name)
					}
				case "Deployment", "ConfigMap":
					require.Equal(t, "true", object.GetLabels()["velero.io/exclude-from-backup"], "the load is in no backup")
				}
			}
			require.Equal(t, w.claims, claims, "%s, %s", d.name, w.name)
			require.Equal(t, w.claims, volumes, "%s, %s", d.name, w.name)
		}
	}
}

func TestReport(t *testing.T) {
	by := Result{Database: "redis", Way: "stillpoint", Promised: true}
	by.add("soak-redis-stillpoint-1", 90*time.Millisecond, nil)
	by.add("soak-redis-stillpoint-2", 30*time.Millisecond, nil)
	by.add("soak-redis-stillpoint-3", 40*time.Millisecond, nil)
	without := Result{Database: "redis", Way: "velero-log-first"}
	without.add("soak-redis-velero-log-first-1", 0, errors.New("the counter is 9, and the last value in the journal is 4"))
	require.Equal(t, `DATABASE  WAY               BACKUPS  INTACT  BROKEN  QUIESCED (median, longest)
redis     stillpoint        3        3       0       40 ms, 90 ms
redis     velero-log-first  1        0       1

soak-redis-velero-log-first-1: the counter is 9, and the last value in the journal is 4
`, Report([]Result{by, without}))
	require.Zero(t, Failed([]Result{by, without}), "Stillpoint does not stand for Velero alone")
	by.add("soak-redis-stillpoint-4", 0, errors.New("lost"))
	require.Equal(t, 1, Failed([]Result{by, without}))
}
