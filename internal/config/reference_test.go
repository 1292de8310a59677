package config

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"
	"unicode"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"stillpoint.io/stillpoint/internal/api"
)

const (
	referencePage = "../../docs/configuration.md"
	exampleFile   = "../../deploy/config.yaml"
)

// TestReference holds docs/configuration.md against the types: their comments,
// keys and defaults.
func TestReference(t *testing.T) {
	page, err := template.ParseFiles("testdata/configuration.md.tmpl")
	require.NoError(t, err)
	file, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	var got strings.Builder
	require.NoError(t, page.Execute(&got, map[string]string{
		"Note":              "<!-- Made from the types of internal/config: UPDATE_GOLDEN=1 go test ./internal/config -->",
		"PluginConfigLabel": PluginConfigLabel, "PluginLabel": api.LabelConfiguration, "PluginKind": PluginKind, "Key": Key, "Version": Version,
		"Keys":    reference(t),
		"Example": exampleOf(t, activate(string(file))).Data[Key],
	}))
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(referencePage, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(referencePage)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String(), "set UPDATE_GOLDEN=1 to accept")
}

// reference is a table for each map of the document.
func reference(t *testing.T) string {
	t.Helper()
	comments := commentsOf(t)
	var page strings.Builder
	var table func(path string, of reflect.Type)
	table = func(path string, of reflect.Type) {
		if path != "" {
			about := strings.TrimPrefix(comments[of.Name()], of.Name()+" ")
			if strings.HasSuffix(path, "[]") {
				about = "Each entry " + about
			} else {
				about = fmt.Sprintf("`%s` %s", path[strings.LastIndex(path, ".")+1:], about)
			}
			fmt.Fprintf(&page, "### `%s`\n\n%s\n\n", path, about)
		}
		page.WriteString("| key | value | default | meaning |\n|---|---|---|---|\n")
		type within struct {
			path string
			of   reflect.Type
		}
		var deeper []within
		for _, field := range reflect.VisibleFields(of) {
			meaning, otherwise := split(t, of.Name()+"."+field.Name, comments)
			at, kind := strings.TrimPrefix(path+"."+keyOf(field), "."), ""
			switch {
			case structOf(field.Type) != nil:
				deeper = append(deeper, within{at, structOf(field.Type)})
				kind = "[map](#" + anchor(at) + ")"
			case field.Type.Kind() == reflect.Slice && field.Type.Elem().Kind() == reflect.Struct:
				deeper = append(deeper, within{at + "[]", field.Type.Elem()})
				kind = "[list of maps](#" + anchor(at) + ")"
			default:
				kind = kindOf(t, field.Type)
			}
			fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", keyOf(field), kind, otherwise, meaning)
		}
		page.WriteString("\n")
		for _, w := range deeper {
			table(w.path, w.of)
		}
	}
	table("", reflect.TypeFor[Config]())
	return page.String()
}

// structOf is the map of the document that a field is, nil for anything else.
func structOf(of reflect.Type) reflect.Type {
	if of.Kind() == reflect.Pointer && of != reflect.TypeFor[*metav1.LabelSelector]() {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct || slices.Contains(ofKubernetes, of) {
		return nil
	}
	return of
}

// ofKubernetes are maps of the document that Kubernetes defines.
var ofKubernetes = []reflect.Type{reflect.TypeFor[corev1.ResourceRequirements](), reflect.TypeFor[corev1.SecurityContext]()}

// anchor is what a link to a heading needs.
func anchor(heading string) string {
	return strings.ToLower(regexp.MustCompile(`\W`).ReplaceAllString(heading, ""))
}

// commentsOf are the comments of the package's types and their fields, as Type
// and Type.Field.
func commentsOf(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "types.go", nil, parser.ParseComments)
	require.NoError(t, err)
	comments := map[string]string{}
	text := func(name string, group *ast.CommentGroup) {
		comments[name] = strings.Join(strings.Fields(group.Text()), " ")
	}
	for _, declared := range file.Decls {
		general, ok := declared.(*ast.GenDecl)
		if !ok || general.Tok != token.TYPE {
			continue
		}
		for _, spec := range general.Specs {
			named, ok := spec.(*ast.TypeSpec)
			require.True(t, ok)
			text(named.Name.Name, general.Doc)
			of, ok := named.Type.(*ast.StructType)
			if !ok {
				continue // a word, whose values kindOf has
			}
			for _, field := range of.Fields.List {
				for _, name := range field.Names {
					text(named.Name.Name+"."+name.Name, field.Doc)
				}
			}
		}
	}
	return comments
}

var ofField = regexp.MustCompile(`^(\w+) (?:is|are) (.*\.) (Required.*|Default: .*)\.$`)

// split takes a field's comment apart: what it is, and what holds without it.
func split(t *testing.T, name string, comments map[string]string) (meaning, otherwise string) {
	t.Helper()
	parts := ofField.FindStringSubmatch(comments[name])
	require.NotNil(t, parts, "the comment of %s must be `<name> is …. Required.` or `<name> are …. Default: ….`, and is %q", name, comments[name])
	require.Equal(t, name[strings.Index(name, ".")+1:], parts[1])
	meaning = string(unicode.ToUpper(rune(parts[2][0]))) + parts[2][1:]
	otherwise = strings.TrimPrefix(parts[3], "Default: ")
	if strings.HasPrefix(otherwise, "Required") {
		otherwise = "**required**" + strings.TrimPrefix(otherwise, "Required")
	}
	return meaning, otherwise
}

func kindOf(t *testing.T, of reflect.Type) string {
	t.Helper()
	switch {
	case of == reflect.TypeFor[snapshotv1.DeletionPolicy]():
		return "`Retain` or `Delete`"
	case of == reflect.TypeFor[*metav1.LabelSelector]():
		return "[label selector](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#resources-that-support-set-based-requirements)"
	case of == reflect.TypeFor[*corev1.ResourceRequirements]():
		return "[resources](https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/)"
	case of == reflect.TypeFor[*corev1.SecurityContext]():
		return "[security context](https://kubernetes.io/docs/tasks/configure-pod-container/security-context/)"
	case of == reflect.TypeFor[RestoreFrom]():
		return "`any` or `export`"
	case of == reflect.TypeFor[Quiesce]():
		return "`optional` or `required`"
	case of == reflect.TypeFor[VolumesWithoutData]():
		return "`velero`, `provision` or `refuse`"
	case of == reflect.TypeFor[Freeze]():
		return "`always`, `flush` or `driver`"
	case of == reflect.TypeFor[LocalSnapshotPolicy]():
		return "`delete`, `retain` or `keepLast`"
	case of.Kind() == reflect.String:
		return "string"
	case of.Kind() == reflect.Int:
		return "whole number"
	case of.Kind() == reflect.Bool:
		return "`true` or `false`"
	case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.String:
		return "list of strings"
	}
	t.Fatalf("no word for %s", of)
	return ""
}

// activate takes the # off the example lines of a file in deploy: comments of its
// document in which the # is not followed by one space and text.
func activate(file string) string {
	return regexp.MustCompile(`(?m)^( +)#( {2,}\S|[^ \n])`).ReplaceAllString(file, "$1$2")
}

func exampleOf(t *testing.T, file string) *corev1.ConfigMap {
	t.Helper()
	configMap := &corev1.ConfigMap{}
	require.NoError(t, yaml.UnmarshalStrict([]byte(file), configMap))
	require.Equal(t, "ConfigMap", configMap.Kind)
	return configMap
}

// TestExampleChangesNothing decodes the file that is applied as it is.
func TestExampleChangesNothing(t *testing.T) {
	file, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	config, err := Decode(exampleOf(t, string(file)))
	require.NoError(t, err)
	require.Equal(t, Default("velero"), config)
}

// TestExampleIsValid decodes it with all its examples in force, which must have
// every key.
func TestExampleIsValid(t *testing.T) {
	file, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	config, err := Decode(exampleOf(t, activate(string(file))))
	require.NoError(t, err)

	used := map[string]bool{}
	var use func(value reflect.Value)
	use = func(value reflect.Value) {
		switch value.Kind() {
		case reflect.Pointer:
			if !value.IsNil() && structOf(value.Type()) != nil {
				use(value.Elem())
			}
		case reflect.Struct:
			for _, field := range reflect.VisibleFields(value.Type()) {
				name := value.Type().Name() + "." + field.Name
				used[name] = used[name] || !value.FieldByIndex(field.Index).IsZero()
				use(value.FieldByIndex(field.Index))
			}
		case reflect.Slice:
			for i := range value.Len() {
				use(value.Index(i))
			}
		default:
		}
	}
	use(reflect.ValueOf(*config))
	require.Contains(t, used, "SnapshotClassMapping.Skip")
	require.Contains(t, used, "NodeThaw.Image")
	for name, is := range used {
		require.True(t, is, "%s is not in the example", name)
	}
}
