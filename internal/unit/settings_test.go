package unit

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/api"
)

// layer returns an object with annotations, given as key, value, key, value.
func layer(object string, annotations ...string) Layer {
	l := Layer{Object: object, Annotations: map[string]string{}}
	for i := 0; i < len(annotations); i += 2 {
		l.Annotations[annotations[i]] = annotations[i+1]
	}
	return l
}

func TestResolve(t *testing.T) {
	defaults := Settings{
		PrepareTimeout: 5 * time.Minute, QuiesceTimeout: 30 * time.Second, OnError: Fail,
		Options: map[string]string{}, SourceLayer: -1,
	}
	with := func(change func(*Settings)) Settings {
		settings := defaults
		settings.Options = map[string]string{}
		change(&settings)
		return settings
	}
	named := func(source string, at int, names ...string) Settings {
		return with(func(s *Settings) { s.Blueprints, s.Source, s.SourceLayer = names, source, at })
	}
	for name, test := range map[string]struct {
		layers []Layer
		want   Settings
	}{
		"no layers":      {nil, defaults},
		"no annotations": {[]Layer{{Object: "Deployment shop/db"}, layer("Namespace shop", "example.com/quiesce", "x", "kubernetes.io/x", "y")}, defaults},
		"one blueprint":  {[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, "postgresql")}, named("Deployment shop/db", 0, "postgresql")},
		"the order of the list, blanks around": {
			[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, " redis , my.mongo-2\t,fsfreeze ")},
			named("Deployment shop/db", 0, "redis", "my.mongo-2", "fsfreeze"),
		},
		"fsfreeze goes last": {
			[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, "fsfreeze,redis,mongo")},
			named("Deployment shop/db", 0, "redis", "mongo", "fsfreeze"),
		},
		"a name given twice": {
			[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, "redis,fsfreeze,redis,fsfreeze")},
			named("Deployment shop/db", 0, "redis", "fsfreeze"),
		},
		"kanister alone":              {[]Layer{layer("Deployment shop/db", api.AnnotationKanister, " mongo-hooks ")}, named("Deployment shop/db", 0, "mongo-hooks")},
		"kanister before the list":    {[]Layer{layer("Deployment shop/db", api.AnnotationKanister, "mongo-hooks", api.AnnotationQuiesce, "redis")}, named("Deployment shop/db", 0, "mongo-hooks", "redis")},
		"kanister's fsfreeze is last": {[]Layer{layer("Deployment shop/db", api.AnnotationKanister, "fsfreeze", api.AnnotationQuiesce, "redis")}, named("Deployment shop/db", 0, "redis", "fsfreeze")},
		"kanister and list the same":  {[]Layer{layer("Deployment shop/db", api.AnnotationKanister, "redis", api.AnnotationQuiesce, "redis")}, named("Deployment shop/db", 0, "redis")},
		"none":                        {[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, " none ")}, named("Deployment shop/db", 0)},
		"none beside kanister":        {[]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, "none", api.AnnotationKanister, "mongo")}, named("Deployment shop/db", 0)},
		"none hides a farther object": {
			[]Layer{layer("PersistentVolumeClaim shop/cache", api.AnnotationQuiesce, "none"), layer("Deployment shop/db", api.AnnotationQuiesce, "redis")},
			named("PersistentVolumeClaim shop/cache", 0),
		},
		"the names are one setting": {
			[]Layer{layer("Deployment shop/db", api.AnnotationKanister, "mongo"), layer("Namespace shop", api.AnnotationQuiesce, "redis,fsfreeze")},
			named("Deployment shop/db", 0, "mongo"),
		},
		"the farthest object": {
			[]Layer{layer("the pods of Deployment shop/db"), layer("Deployment shop/db"), layer("Namespace shop", api.AnnotationQuiesce, "fsfreeze")},
			named("Namespace shop", 2, "fsfreeze"),
		},
		"each setting from the nearest that has it": {
			[]Layer{
				layer("the pods of Deployment shop/db", api.AnnotationQuiesceTimeout, "10s", api.AnnotationOptionPrefix+"user", "app"),
				layer("Deployment shop/db", api.AnnotationQuiesce, "redis", api.AnnotationQuiesceTimeout, "20s", api.AnnotationPrepareTimeout, "2m",
					api.AnnotationOptionPrefix+"user", "other", api.AnnotationOptionPrefix+"secret", "db"),
				layer("Namespace shop", api.AnnotationQuiesce, "fsfreeze", api.AnnotationPrepareTimeout, "3m", api.AnnotationOnQuiesceError, "continue",
					api.AnnotationOptionPrefix+"secret", "all", api.AnnotationOptionPrefix+"port", ""),
			},
			Settings{
				Blueprints: []string{"redis"}, Source: "Deployment shop/db", SourceLayer: 1,
				PrepareTimeout: 2 * time.Minute, QuiesceTimeout: 10 * time.Second, OnError: Continue,
				Options: map[string]string{"user": "app", "secret": "db", "port": ""},
			},
		},
		"fail over continue": {
			[]Layer{layer("Deployment shop/db", api.AnnotationOnQuiesceError, "fail"), layer("Namespace shop", api.AnnotationOnQuiesceError, "continue")},
			defaults,
		},
		"the longest time": {
			[]Layer{layer("Deployment shop/db", api.AnnotationPrepareTimeout, "24h", api.AnnotationQuiesceTimeout, "1ns")},
			with(func(s *Settings) { s.PrepareTimeout, s.QuiesceTimeout = 24*time.Hour, 1 }),
		},
		"a value that a nearer one hides is not looked at": {
			[]Layer{layer("Deployment shop/db", api.AnnotationQuiesceTimeout, "10s", api.AnnotationQuiesce, "redis"), layer("Namespace shop", api.AnnotationQuiesceTimeout, "soon", api.AnnotationQuiesce, "R E D")},
			with(func(s *Settings) {
				s.QuiesceTimeout = 10 * time.Second
				s.Blueprints, s.Source, s.SourceLayer = []string{"redis"}, "Deployment shop/db", 0
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			settings, err := Resolve(test.layers)
			require.NoError(t, err)
			settings.Origins = nil // TestPermit
			assert.Equal(t, test.want, settings)
		})
	}
}

func TestResolveSaysWhatIsNotValid(t *testing.T) {
	const (
		durations = "; valid: a duration above 0 and up to 24h, such as 30s, 5m or 1m30s"
		names     = "; valid: none, or names of blueprints with commas between them, such as postgresql,fsfreeze"
		known     = "; known: stillpoint.io/quiesce, stillpoint.io/prepare-timeout, stillpoint.io/quiesce-timeout, stillpoint.io/on-quiesce-error and option.stillpoint.io/<key>"
	)
	for name, test := range map[string]struct {
		annotations []string
		text        string
	}{
		"empty list":             {[]string{api.AnnotationQuiesce, ""}, `Deployment shop/db: annotation stillpoint.io/quiesce: "" is not valid` + names},
		"empty name":             {[]string{api.AnnotationQuiesce, "redis,,fsfreeze"}, `Deployment shop/db: annotation stillpoint.io/quiesce: "redis,,fsfreeze" is not valid` + names},
		"upper case":             {[]string{api.AnnotationQuiesce, "PostgreSQL"}, `Deployment shop/db: annotation stillpoint.io/quiesce: "PostgreSQL" is not valid` + names},
		"blanks for commas":      {[]string{api.AnnotationQuiesce, "redis fsfreeze"}, `Deployment shop/db: annotation stillpoint.io/quiesce: "redis fsfreeze" is not valid` + names},
		"none among others":      {[]string{api.AnnotationQuiesce, "redis,none"}, `Deployment shop/db: annotation stillpoint.io/quiesce: "redis,none" is not valid` + names},
		"kanister takes one":     {[]string{api.AnnotationKanister, "mongo,redis"}, `Deployment shop/db: annotation kanister.kasten.io/blueprint: "mongo,redis" is not valid; valid: the name of one blueprint`},
		"kanister empty":         {[]string{api.AnnotationKanister, ""}, `Deployment shop/db: annotation kanister.kasten.io/blueprint: "" is not valid; valid: the name of one blueprint`},
		"kanister beside none":   {[]string{api.AnnotationKanister, "A B", api.AnnotationQuiesce, "none"}, `Deployment shop/db: annotation kanister.kasten.io/blueprint: "A B" is not valid; valid: the name of one blueprint`},
		"prepare-timeout":        {[]string{api.AnnotationPrepareTimeout, "300"}, `Deployment shop/db: annotation stillpoint.io/prepare-timeout: "300" is not valid` + durations},
		"quiesce-timeout":        {[]string{api.AnnotationQuiesceTimeout, "half a minute"}, `Deployment shop/db: annotation stillpoint.io/quiesce-timeout: "half a minute" is not valid` + durations},
		"a day and a bit":        {[]string{api.AnnotationQuiesceTimeout, "24h0m1s"}, `Deployment shop/db: annotation stillpoint.io/quiesce-timeout: "24h0m1s" is not valid` + durations},
		"zero":                   {[]string{api.AnnotationQuiesceTimeout, "0s"}, `Deployment shop/db: annotation stillpoint.io/quiesce-timeout: "0s" is not valid` + durations},
		"negative":               {[]string{api.AnnotationPrepareTimeout, "-5m"}, `Deployment shop/db: annotation stillpoint.io/prepare-timeout: "-5m" is not valid` + durations},
		"empty duration":         {[]string{api.AnnotationPrepareTimeout, ""}, `Deployment shop/db: annotation stillpoint.io/prepare-timeout: "" is not valid` + durations},
		"on-quiesce-error":       {[]string{api.AnnotationOnQuiesceError, "ignore"}, `Deployment shop/db: annotation stillpoint.io/on-quiesce-error: "ignore" is not valid; valid: fail, continue`},
		"on-quiesce-error, case": {[]string{api.AnnotationOnQuiesceError, "Continue"}, `Deployment shop/db: annotation stillpoint.io/on-quiesce-error: "Continue" is not valid; valid: fail, continue`},
		"a typing error":         {[]string{"stillpoint.io/quiese", "redis"}, `Deployment shop/db: unknown annotation stillpoint.io/quiese` + known},
		"typing errors":          {[]string{"stillpoint.io/z", "", "stillpoint.io/a", ""}, `Deployment shop/db: unknown annotation stillpoint.io/a, stillpoint.io/z` + known},
		"an option of the wrong domain": {
			[]string{api.AnnotationQuiesce, "redis", "stillpoint.io/option.user", "x"},
			`Deployment shop/db: unknown annotation stillpoint.io/option.user` + known,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Resolve([]Layer{layer("the pods of Deployment shop/db"), layer("Deployment shop/db", test.annotations...)})
			require.EqualError(t, err, test.text)
		})
	}

	t.Run("a typing error on a farther object", func(t *testing.T) {
		_, err := Resolve([]Layer{layer("Deployment shop/db", api.AnnotationQuiesce, "redis"), layer("Namespace shop", "stillpoint.io/timeout", "1s")})
		require.EqualError(t, err, `Namespace shop: unknown annotation stillpoint.io/timeout`+known)
	})
}

// OnError tells callers how to handle the error, so that it must be valid.
func TestOnErrorIsValidWhateverElseIsNot(t *testing.T) {
	for name, annotations := range map[string][]string{
		"list":     {api.AnnotationQuiesce, "A B"},
		"kanister": {api.AnnotationKanister, "a,b"},
		"prepare":  {api.AnnotationPrepareTimeout, "x"},
		"quiesce":  {api.AnnotationQuiesceTimeout, "x"},
		"unknown":  {"stillpoint.io/x", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			settings, err := Resolve([]Layer{layer("Pod shop/db-0", annotations...), layer("Namespace shop", api.AnnotationOnQuiesceError, "continue")})
			require.Error(t, err)
			assert.Equal(t, Continue, settings.OnError)
		})
	}
	t.Run("itself", func(t *testing.T) {
		settings, err := Resolve([]Layer{layer("Pod shop/db-0", api.AnnotationOnQuiesceError, "go on"), layer("Namespace shop", api.AnnotationOnQuiesceError, "continue")})
		require.Error(t, err)
		assert.Equal(t, Fail, settings.OnError)
	})
}
