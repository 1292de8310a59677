package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
	"stillpoint.io/stillpoint/tests/stage"
)

// clearLimit is for deleting all backups and namespaces, and a backup of an
// earlier run that is still at work.
const clearLimit = 12 * time.Minute

// ours marks the objects of the bench in Velero's namespace.
var ours = client.MatchingLabels{"stillpoint.io/bench": "true"}

// policy is a ConfigMap with the volume policy that leaves the volumes of a
// backup to Stillpoint.
const policy = "bench-volume-policy"

// bench measures what it was asked for.
type bench struct {
	*stage.Stage
	apps   []*app
	runs   int
	ways   []way
	parts  []string
	limits []string // request limits of the part stall
	// limited are those of now.
	limited string
	plugin  string // the binary
	result  string // the file for the figures
	// The backups of the part left: with Velero's mover, by Velero alone, and
	// with the bench as the mover.
	backups, veleroBackups, playedBackups int
	dataMovers                            []string // of the part export
}

// results are all that was measured; a part that was not is empty.
type results struct {
	runs int
	// stalls are with raised request limits, stallsDefault with the default ones.
	stalls, stallsDefault []series
	claims                bulk
	process               process
	planning              planned
	exports               []*exports
	leftovers             []leftovers
	latencies             latencies
}

// run measures part after part and writes the figures after each, so that a part
// that fails takes only its own with it. What was measured is returned in any case.
func (b *bench) run(ctx context.Context) (results, error) {
	found := results{runs: b.runs}
	// A run that was killed may have left Velero without it.
	if err := b.InstallPlugin(ctx, b.plugin); err != nil {
		return found, err
	}
	if err := b.makePolicy(ctx); err != nil {
		return found, err
	}
	for _, part := range []struct {
		name    string
		measure func(context.Context, *results) error
	}{
		{partProcess, b.measureProcess},
		{partStall, b.measureStalls},
		{partClaims, b.measureClaims},
		{partPlanning, b.measurePlanning},
		{partExport, b.measureExports},
		{partLeft, b.measureLeft},
		{partLatency, b.measureLatency},
	} {
		if !slices.Contains(b.parts, part.name) {
			continue
		}
		err := part.measure(ctx, &found)
		if err != nil {
			err = fmt.Errorf("%s: %w", part.name, err)
		}
		if err := errors.Join(err, stage.WriteResult(b.result, summarize(found))); err != nil {
			return found, err
		}
	}
	return found, nil
}

// makePolicy makes the ConfigMap, by which only backups go that name it.
func (b *bench) makePolicy(ctx context.Context) error {
	object := policyObject()
	object.Data = map[string]string{"policy.yaml": `version: v1
volumePolicies:
  - conditions:
      csi: {driver: ` + loopcsi.Name + `}
    action:
      type: custom
      parameters: {snapshotter: stillpoint.io}
`}
	if err := b.Objects().Create(ctx, object); err != nil {
		return fmt.Errorf("make the volume policy: %w", err)
	}
	return nil
}

func policyObject() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: policy, Labels: ours}}
}

// createBackup asks Velero for a backup of a namespace, as a user would.
func (b *bench) createBackup(ctx context.Context, name, namespace string, byPolicy bool) error {
	args := []string{"backup", "create", name, "--include-namespaces", namespace}
	for key, value := range ours {
		args = append(args, "--labels", key+"="+value)
	}
	if byPolicy {
		args = append(args, "--resource-policies-configmap", policy)
	}
	_, err := b.Velero(ctx, args...)
	return err
}

// clear deletes what this run or an earlier one has left, and has Velero poll
// as it does by default. Namespaces go last: a backup that is still at work may
// freeze.
func (b *bench) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	if err := b.SetVeleroVariable(ctx, earlyVariable, ""); err != nil {
		return err
	}
	if err := b.setFeatures(ctx, csiFeature); err != nil {
		return err
	}
	if err := b.SetLimits(ctx, cluster.RaisedLimits); err != nil {
		return err
	}
	if err := b.forgetMoved(ctx); err != nil {
		return err
	}
	if err := b.untune(ctx); err != nil {
		return err
	}
	if err := b.ForgetBackups(ctx, ours); err != nil {
		return err
	}
	if err := b.DeleteAll(ctx, []client.Object{snapshotLocation()}); err != nil {
		return err
	}
	if err := b.forgetRepositories(ctx); err != nil {
		return err
	}
	if err := b.DeleteAll(ctx, []client.Object{policyObject(), moverConfig()}); err != nil {
		return err
	}
	objects, err := b.planObjects()
	if err != nil {
		return err
	}
	if err := objects.clear(ctx); err != nil {
		return err
	}
	// Those of a run with other numbers of volumes, too.
	left := &corev1.NamespaceList{}
	if err := b.Objects().List(ctx, left, ours); err != nil {
		return err
	}
	for i := range left.Items {
		if name := left.Items[i].Name; name == exportNamespace || name == latencyNamespace || strings.HasPrefix(name, leftPrefix) {
			if err := b.dropAll(ctx, name); err != nil {
				return err
			}
		}
		if err := b.DeleteNamespace(ctx, left.Items[i].Name); err != nil {
			return err
		}
	}
	// The next run makes those of the same names.
	for i := range left.Items {
		if err := b.DeleteAll(ctx, []client.Object{&left.Items[i]}); err != nil {
			return err
		}
	}
	return b.Objects().DeleteAllOf(ctx, &snapshotv1.VolumeSnapshotClass{}, ours)
}

// thaw thaws what a failure may have left frozen; it must not wait for backups.
func (b *bench) thaw(ctx context.Context) {
	for _, a := range b.apps {
		for _, claim := range a.claims() {
			if frozen, err := b.Thaw(ctx, a.namespace(), claim); err == nil && frozen {
				b.Say("thawed %s/%s from the host", a.namespace(), claim)
			}
		}
	}
}
