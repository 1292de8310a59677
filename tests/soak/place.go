package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// pod is the database's only one.
const pod = "db-0"

// place is a database in a namespace: the one that works, or a restored copy.
type place struct {
	*Soak
	database  *database
	namespace string
}

// SetUp makes one of the databases with its load, on two volumes, in a namespace
// of this name, and waits until both work. Nothing asks for it to be quiesced.
func SetUp(ctx context.Context, on *stage.Stage, database, namespace string) error {
	chosen, err := Options{Databases: []string{database}}.databases()
	if err != nil {
		return err
	}
	p := place{Soak: &Soak{Stage: on}, database: chosen[0], namespace: namespace}
	return p.setUp(ctx, way{claims: []string{dataVolume, logVolume}})
}

// setUp makes the database and its load anew and waits until both work.
func (p place) setUp(ctx context.Context, w way) error {
	// A frozen volume or another layout of an earlier way goes with it.
	if err := p.DeleteNamespace(ctx, p.namespace); err != nil {
		return err
	}
	text, err := manifests.ReadFile("manifests/" + p.database.name + ".yaml")
	if err != nil {
		return err
	}
	t, err := template.New(p.database.name).Parse(string(text))
	if err != nil {
		return err
	}
	var rendered bytes.Buffer
	if err := t.Execute(&rendered, parameters(p.database, w, p.namespace, "pass-"+rand.String(12))); err != nil {
		return err
	}
	if _, err := p.Kubectl(ctx, &rendered, "apply", "--filename", "-"); err != nil {
		return err
	}
	if w.quiesce != "" {
		_, err := p.Kubectl(ctx, nil, "--namespace", p.namespace, "annotate", "statefulset/db",
			api.AnnotationQuiesce+"="+fmt.Sprintf(w.quiesce, p.database.recipe))
		if err != nil {
			return err
		}
	}
	if err := p.awaitStart(ctx); err != nil {
		return err
	}
	if p.database.load {
		if err := p.AwaitRollout(ctx, p.namespace, "load"); err != nil {
			return err
		}
	}
	// What was made before the load must not be all that a backup holds.
	first, err := p.database.tally(ctx, p)
	if err != nil {
		return err
	}
	return stage.Until(ctx, "the load works", func(ctx context.Context) (bool, error) {
		now, err := p.database.tally(ctx, p)
		return now != first, err
	})
}

// parameters are those of a manifest.
func parameters(d *database, w way, namespace, password string) map[string]any {
	return map[string]any{
		"Namespace": namespace, "Image": d.image, "Password": password,
		"Claims": w.claims, "Log": w.log(), "Rate": loadRate, "Pause": loadPause,
	}
}

// awaitStart waits until the database answers. One whose server ends is not
// waited for.
func (p place) awaitStart(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	last := "there is no pod " + pod
	err := stage.Until(limit, "the database answers", func(ctx context.Context) (bool, error) {
		found := &corev1.Pod{}
		err := p.Objects().Get(ctx, client.ObjectKey{Namespace: p.namespace, Name: pod}, found)
		if client.IgnoreNotFound(err) != nil {
			return false, err
		}
		for _, c := range found.Status.ContainerStatuses {
			if c.Name != p.database.container {
				continue
			}
			if c.RestartCount > 0 {
				return false, errors.New("the server has ended")
			}
			last = fmt.Sprintf("container %s: %+v", c.Name, c.State)
			return c.Ready, nil
		}
		return false, nil
	})
	if err == nil {
		return nil
	}
	return fmt.Errorf("the database does not start: %w; %s; its log ends: %s", err, last, p.logs(context.WithoutCancel(ctx)))
}

// logs is the end of what the server has written, of the one before if it has
// been started again.
func (p place) logs(ctx context.Context) string {
	args := []string{"--namespace", p.namespace, "logs", pod, "--container", p.database.container, "--tail=8"}
	text, err := p.Kubectl(ctx, nil, append(args, "--previous")...)
	if err != nil {
		text, err = p.Kubectl(ctx, nil, args...)
	}
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Split(strings.TrimSpace(text), "\n"), " | ")
}

// ask feeds a client in the database's container and returns what it prints.
func (p place) ask(ctx context.Context, client, input string) (string, error) {
	out, err := p.Kubectl(ctx, strings.NewReader(input), "--namespace", p.namespace, "exec", "--stdin", pod,
		"--container", p.database.container, "--", "sh", "-c", client)
	return strings.TrimSpace(out), err
}

// backUp makes a backup and waits for its end. It returns how long the database
// was frozen for, where Stillpoint did it.
func (s *Soak) backUp(ctx context.Context, name, namespace string, w way) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name, Labels: ours}}
	backup.Spec.IncludedNamespaces = []string{namespace}
	backup.Spec.StorageLocation = "default"
	backup.Spec.TTL.Duration = 24 * time.Hour
	if w.promised {
		backup.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: policy().Name}
	}
	if err := s.Objects().Create(ctx, backup); err != nil {
		return 0, err
	}
	ended, err := s.AwaitBackup(ctx, name, nil)
	if err != nil {
		return 0, err
	}
	if err := s.Promised(ctx, ended); err != nil || !w.promised {
		return 0, err
	}
	log, err := s.BackupLog(ctx, name)
	if err != nil {
		return 0, err
	}
	return log.Frozen()
}

// judgeCopy restores a backup into a namespace of its own. The error says what
// is wrong with it.
func (p place) judgeCopy(ctx context.Context, backup, before string) error {
	restored := p
	restored.namespace = backup
	defer func() { _ = p.DeleteNamespace(context.WithoutCancel(ctx), restored.namespace) }()
	if err := restored.restore(ctx, backup, p.namespace); err != nil {
		return err
	}
	if err := restored.awaitStart(ctx); err != nil {
		return err
	}
	return p.database.judge(ctx, restored, before)
}

func (p place) restore(ctx context.Context, backup, from string) error {
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	restore := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: backup, Labels: ours}}
	restore.Spec.BackupName = backup
	restore.Spec.NamespaceMapping = map[string]string{from: p.namespace}
	if err := p.Objects().Create(ctx, restore); err != nil {
		return err
	}
	ended, err := p.AwaitRestore(ctx, backup, nil)
	if err != nil {
		return err
	}
	if ended.Status.Phase != velerov1.RestorePhaseCompleted {
		return fmt.Errorf("restore %s is %s", backup, ended.Status.Phase)
	}
	return nil
}
