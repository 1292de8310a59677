package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"text/template"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	deployment = "app"
	writer     = "writer"
	sidecar    = "sidecar"
)

//go:embed app.yaml
var manifest string

// app is a writer to some volumes, in a namespace of its own.
type app struct {
	*stage.Stage
	volumes int
}

func (a *app) namespace() string { return fmt.Sprintf("bench-%d", a.volumes) }

func (a *app) container() stage.Container {
	return stage.Container{Namespace: a.namespace(), Deployment: deployment, Name: writer}
}

func (a *app) claims() []string {
	claims := make([]string, a.volumes)
	for i := range claims {
		claims[i] = fmt.Sprintf("data%d", i+1)
	}
	return claims
}

func (a *app) dirs() []string {
	dirs := a.claims()
	for i, claim := range dirs {
		dirs[i] = "/data/" + claim
	}
	return dirs
}

// install makes the application and waits until it runs.
func (a *app) install(ctx context.Context) error {
	t, err := template.New("app.yaml").Parse(manifest)
	if err != nil {
		return err
	}
	var rendered bytes.Buffer
	err = t.Execute(&rendered, map[string]any{
		"Volumes": a.volumes, "Namespace": a.namespace(), "Claims": a.claims(), "Deployment": deployment,
		"Writer": writer, "Sidecar": sidecar, "Image": cluster.Image, "Command": stage.WriterCommand(a.dirs()...),
	})
	if err != nil {
		return err
	}
	if _, err := a.Kubectl(ctx, &rendered, "apply", "--filename", "-"); err != nil {
		return err
	}
	return a.AwaitRollout(ctx, a.namespace(), deployment)
}

// ask annotates the application so that the next backup quiesces it this way,
// and no other. Its pod stays the same.
func (a *app) ask(ctx context.Context, w way) error {
	d := &appsv1.Deployment{}
	if err := a.Objects().Get(ctx, client.ObjectKey{Namespace: a.namespace(), Name: deployment}, d); err != nil {
		return err
	}
	pods := &corev1.PodList{}
	if err := a.Objects().List(ctx, pods, client.InNamespace(a.namespace())); err != nil {
		return err
	}
	if len(pods.Items) != 1 {
		return fmt.Errorf("namespace %s has %d pods, not one", a.namespace(), len(pods.Items))
	}
	onDeployment, onPod := w.annotations(a.dirs())
	if err := a.annotate(ctx, d, onDeployment); err != nil {
		return err
	}
	return a.annotate(ctx, &pods.Items[0], onPod)
}

// annotate sets annotations; an empty value takes one away.
func (a *app) annotate(ctx context.Context, object client.Object, values map[string]string) error {
	before := object.DeepCopyObject().(client.Object) //nolint:forcetypeassert // a copy is of the same type
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	for key, value := range values {
		if annotations[key] = value; value == "" {
			delete(annotations, key)
		}
	}
	object.SetAnnotations(annotations)
	return a.Objects().Patch(ctx, object, client.MergeFrom(before))
}
