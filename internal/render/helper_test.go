package render

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"stillpoint.io/stillpoint/internal/blueprint"
)

const password = `it's "$ecret"`

// renderer has one function, which calls what its args say.
func renderer(confineTo string) *Renderer {
	client := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Data:       map[string][]byte{"mongodb-root-password": []byte(password), "pin": []byte("12")},
	})
	return &Renderer{
		Kube: client, ConfineTo: confineTo,
		Functions: map[string]Function{"KubeExec": {
			Required: []string{"namespace", "pod", "command"},
			Calls: func(_ context.Context, args Args) ([]Call, error) {
				command, err := args.Strings("command")
				return []Call{{Namespace: "shop", Pod: "app-1", Container: "date", Command: command}}, err
			},
		}},
	}
}

func deployment() Params {
	return Params{
		Object: map[string]any{
			"kind":     "Deployment",
			"metadata": map[string]any{"name": "app", "namespace": "shop", "labels": map[string]any{"tier": "web"}},
			"spec":     map[string]any{"replicas": int64(1000000), "template": nil},
		},
		Deployment: &Deployment{
			Name: "app", Namespace: "shop", Pods: []string{"app-1"}, Containers: [][]string{{"date", "sidecar"}},
			PersistentVolumeClaims: map[string]map[string]string{"app-1": {"data": "/mnt"}},
		},
		Options: map[string]string{"container": "sidecar", "ns": "payments", "other": "ledger", "own": "shop"},
		Time:    "2026-02-03T04:05:06.000000007Z",
	}
}

// steps renders a blueprint whose backupPrehook has the given phases (YAML).
func steps(ctx context.Context, r *Renderer, phases string, p Params) ([]*Step, Masker, error) {
	bp, _, err := blueprint.Parse([]byte("metadata: {name: test}\nactions:\n  backupPrehook:\n    phases:\n" + phases))
	if err != nil {
		return nil, Masker{}, err
	}
	script, masker, err := r.Script(ctx, bp, p)
	if err != nil {
		return nil, masker, err
	}
	return script.Pre, masker, nil
}

// exec is a phase that runs one shell command, whose text is a template.
func exec(template string) string {
	return fmt.Sprintf("    - {func: KubeExec, name: run, args: {namespace: shop, pod: app-1, command: [sh, -c, %q]}}\n", template)
}

// withSecret is exec with the database's Secret in scope.
func withSecret(template string) string {
	return fmt.Sprintf("    - {func: KubeExec, name: run, objects: {db: {kind: Secret, namespace: shop, name: db}}, args: {namespace: shop, pod: app-1, command: [sh, -c, %q]}}\n", template)
}
