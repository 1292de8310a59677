package unit

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/api"
)

// FuzzResolve puts arbitrary annotations on a claim, its workload and their namespace.
// Resolve must return valid settings or an error that names the object.
func FuzzResolve(f *testing.F) {
	for _, seed := range [][6]string{
		{api.AnnotationQuiesce, "postgresql, fsfreeze", api.AnnotationKanister, "mongo-hooks", api.AnnotationOnQuiesceError, "continue"},
		{api.AnnotationQuiesce, "none", api.AnnotationQuiesceTimeout, "1m30s", api.AnnotationOptionPrefix + "container", "db"},
		{api.AnnotationQuiesce, "none,fsfreeze", api.AnnotationPrepareTimeout, "-1s", api.Domain + "queisce", "x"},
		{api.AnnotationKanister, "../velero/blueprint", api.AnnotationQuiesce, ",", api.AnnotationQuiesceTimeout, "1e9h"},
		{api.AnnotationQuiesce, "fsfreeze,fsfreeze, fsfreeze", api.AnnotationOptionPrefix, "", api.AnnotationNoSnapshot, "why"},
		{api.AnnotationQuiesce, "a\n---\nb", api.AnnotationOnQuiesceError, "Fail", api.AnnotationPrepareTimeout, "9223372036854775807ns"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], byte(len(seed[1])))
	}
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, key3, value3 string, spread byte) {
		layers := []Layer{
			{Object: "PersistentVolumeClaim shop/data", Claim: true, Annotations: map[string]string{}},
			{Object: "Deployment shop/db", Annotations: map[string]string{}},
			{Object: "Namespace shop", Annotations: map[string]string{}},
		}
		given := map[string]string{key1: value1, key2: value2, key3: value3}
		for i, key := range []string{key1, key2, key3} {
			layers[int(spread)>>(2*i)%len(layers)].Annotations[key] = given[key]
		}

		settings, err := Resolve(layers)
		require.Contains(t, []OnError{Fail, Continue}, settings.OnError)
		if err != nil {
			require.True(t, slices.ContainsFunc(layers, func(l Layer) bool { return strings.HasPrefix(err.Error(), l.Object+": ") }), err)
			return
		}
		for _, timeout := range []time.Duration{settings.PrepareTimeout, settings.QuiesceTimeout} {
			require.Positive(t, timeout)
			require.LessOrEqual(t, timeout, 24*time.Hour)
		}
		for i, name := range settings.Blueprints {
			require.Empty(t, validation.IsDNS1123Subdomain(name), name)
			require.NotContains(t, settings.Blueprints[:i], name)
			if name == FSFreeze {
				require.Len(t, settings.Blueprints, i+1, "file systems go last")
			}
		}
		if len(settings.Blueprints) > 0 {
			require.Equal(t, layers[settings.SourceLayer].Object, settings.Source)
			annotations := layers[settings.SourceLayer].Annotations
			for _, name := range settings.Blueprints {
				require.Contains(t, annotations[api.AnnotationQuiesce]+","+annotations[api.AnnotationKanister], name)
			}
		}
		for option, value := range settings.Options {
			require.Equal(t, given[api.AnnotationOptionPrefix+option], value)
		}
		for key := range given {
			if strings.HasPrefix(key, api.Domain) {
				require.Contains(t, slices.Concat(knownAnnotations, claimAnnotations), key)
			}
			option, ok := strings.CutPrefix(key, api.AnnotationOptionPrefix)
			_, there := settings.Options[option]
			require.Equal(t, ok, ok && there)
		}
	})
}
