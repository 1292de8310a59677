package velero

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/builder"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// row is one of the table in doc.go: ours, file, declaration, expectation.
var row = regexp.MustCompile(`(?m)^//\t(.+?)  +(\S+\.go)(?: (\S+))?  +(\S+)$`)

// TestContract compares the table in doc.go with the source of Velero. A failure
// means that Velero changed something that Stillpoint copies.
func TestContract(t *testing.T) {
	table, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/vmware-tanzu/velero").Output()
	require.NoError(t, err)
	rows := row.FindAllStringSubmatch(string(table), -1)
	require.Len(t, rows, bytes.Count(table, []byte("\n//\t")), "a row of doc.go does not have the form: ours  file.go declaration  hash")
	for _, r := range rows {
		ours, file, declaration, want := r[1], r[2], r[3], r[4]
		t.Run(ours+" of "+declaration, func(t *testing.T) {
			source := declarationOf(t, filepath.Join(strings.TrimSpace(string(module)), file), declaration)
			if strings.HasPrefix(want, `"`) {
				require.Contains(t, source, want, "Velero's %s %s does not contain the literal any more, which Stillpoint copies as %s", file, declaration, ours)
				return
			}
			sum := sha256.Sum256([]byte(source))
			require.Equal(t, want, hex.EncodeToString(sum[:4]), "Velero changed %s in %s: compare it with %s, and then put the new hash in doc.go", declaration, file, ours)
		})
	}
}

// declarationOf returns a function, a method or a type without its comments; without
// a name it returns the file.
func declarationOf(t *testing.T, file, name string) string {
	t.Helper()
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	var found ast.Node
	if name == "" {
		found = parsed
	}
	for _, declaration := range parsed.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			full := d.Name.Name
			if d.Recv != nil {
				receiver := d.Recv.List[0].Type
				if pointer, ok := receiver.(*ast.StarExpr); ok {
					receiver = pointer.X
				}
				full = receiver.(*ast.Ident).Name + "." + full //nolint:forcetypeassert // Velero has no generic receivers
			}
			if full == name {
				d.Doc, found = nil, d
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok && s.Name.Name == name {
					s.Doc, found = nil, s
				}
			}
		}
	}
	require.NotNil(t, found, "%s has no %s any more", file, name)
	var text bytes.Buffer
	require.NoError(t, printer.Fprint(&text, files, found))
	return text.String()
}

// Every field of a DataUpload that Velero's API has is set, or known to be unset by
// Velero's own action.
func TestFieldsOfDataUploads(t *testing.T) {
	spec := newUploadOfAll().Spec
	unset := func(of any) (names []string) {
		value := reflect.ValueOf(of)
		for i := range value.NumField() {
			if value.Field(i).IsZero() {
				names = append(names, value.Type().Field(i).Name)
			}
		}
		return names
	}
	assert.Equal(t, []string{"Cancel"}, unset(spec), "DataUploadSpec has fields that NewDataUpload does not set: compare newDataUpload of Velero")
	assert.Empty(t, unset(*spec.CSISnapshot), "CSISnapshotSpec has fields that NewDataUpload does not set: compare newDataUpload of Velero")
}

// BackupOf makes the Backup that Velero's builder makes.
func TestBackupOfIsVeleros(t *testing.T) {
	for name, labels := range map[string]map[string]string{"its own labels": nil, "labels of the template": {"own": "x"}, "no labels of the template": {}} {
		t.Run(name, func(t *testing.T) {
			schedule := &velerov1.Schedule{ObjectMeta: metav1.ObjectMeta{
				Namespace: "velero", Name: "nightly", Labels: map[string]string{"team": "shop"}, Annotations: map[string]string{"a": "b"},
			}}
			schedule.Spec.Template.IncludedNamespaces, schedule.Spec.Template.Labels = []string{"shop"}, labels
			ours := BackupOf(schedule)
			theirs := builder.ForBackup("velero", "nightly").FromSchedule(schedule.DeepCopy()).Result()
			assert.Equal(t, theirs.Labels, ours.Labels)
			assert.Equal(t, theirs.Annotations, ours.Annotations)
			assert.Equal(t, theirs.Spec.IncludedNamespaces, ours.Spec.IncludedNamespaces)
		})
	}
}

// The phases in which Velero only finalizes are those that Finalizing knows.
func TestPhasesOfFinalizing(t *testing.T) {
	backup := &velerov1.Backup{}
	for phase, want := range map[velerov1.BackupPhase]bool{
		velerov1.BackupPhaseInProgress: false, velerov1.BackupPhaseWaitingForPluginOperations: false,
		velerov1.BackupPhaseFinalizing: true, velerov1.BackupPhaseFinalizingPartiallyFailed: true, velerov1.BackupPhaseCompleted: false,
	} {
		backup.Status.Phase = phase
		assert.Equal(t, want, Finalizing(backup), phase)
	}
	assert.Equal(t, velerov2alpha1.SchemeGroupVersion.Group, DataUploads.Group)
}

// The functions of this package that the table names exist.
func TestContractNamesOurs(t *testing.T) {
	table, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	sources, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var all strings.Builder
	for _, file := range sources {
		if content, err := os.ReadFile(file); err == nil && !strings.HasSuffix(file, "_test.go") && file != "doc.go" {
			all.Write(content)
		}
	}
	for _, r := range row.FindAllStringSubmatch(string(table), -1) {
		if ours := r[1]; !strings.Contains(ours, ":") { // the facts of other packages
			name := ours[strings.LastIndex(ours, ".")+1:]
			assert.Regexp(t, `(?m)(^func (\([^)]+\) )?|^type |^\t|^\t\w+, )`+name+`\b`, all.String(), "doc.go names %s, which does not exist", ours)
		}
	}
}
