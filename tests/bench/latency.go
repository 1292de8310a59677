package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	latencyNamespace = "bench-latency"
	latencyLimit     = 12 * time.Minute
	// Each round writes so many blocks of latencyBlock to a file of this size,
	// each of them on stable storage before the next.
	latencyRounds, latencyWrites  = 10, 1000
	latencyBlock, latencyFileSize = 4 << 10, 32 << 20
	// sleeper is a pod that keeps the volume mounted and does not write.
	sleeper = `apiVersion: v1
kind: Namespace
metadata:
  name: ` + latencyNamespace + `
  labels: {stillpoint.io/bench: "true"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: ` + latencyNamespace + `}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: ` + latencyNamespace + `}
spec:
  selector: {matchLabels: {app: bench}}
  template:
    metadata: {labels: {app: bench}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: ` + cluster.Image + `
          command: [sleep, infinity]
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`
)

// held are the numbers of snapshots that are held while the volume is written.
var held = [...]int{0, 1, 5}

// latencies are, for each number of snapshots held, those of its rounds.
type latencies [len(held)]struct{ median, p99 []time.Duration }

// measureLatency measures how long a small write to a volume takes with and
// without snapshots of it in the storage. The numbers of snapshots take turns,
// and each begins with another one in each round.
func (b *bench) measureLatency(ctx context.Context, found *results) error {
	ctx, cancel := context.WithTimeout(ctx, latencyLimit)
	defer cancel()
	if _, err := b.Kubectl(ctx, strings.NewReader(sleeper), "apply", "--filename", "-"); err != nil {
		return err
	}
	if err := b.AwaitRollout(ctx, latencyNamespace, deployment); err != nil {
		return err
	}
	mount, err := b.VolumeMount(ctx, latencyNamespace, "data")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(mount, "written"), os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err != nil {
		return fmt.Errorf("write to the volume on the host: %w", err)
	}
	defer file.Close()
	for round := range latencyRounds {
		for turn := range held {
			i := (turn + round) % len(held)
			took, err := b.writeHolding(ctx, file, held[i])
			if err != nil {
				return fmt.Errorf("with %d snapshots: %w", held[i], err)
			}
			middle, p99 := quantile(took, 0.5), quantile(took, 0.99)
			found.latencies[i].median = append(found.latencies[i].median, middle)
			found.latencies[i].p99 = append(found.latencies[i].p99, p99)
			b.Say("round %d of %d, %d snapshots held: a write takes %.2f ms, 99 of 100 at most %.2f", round+1, latencyRounds, held[i], millis(middle), millis(p99))
		}
	}
	return nil
}

// writeHolding writes while the storage holds so many snapshots, each of another
// state of the file, all of whose blocks the last one shares. It deletes them.
func (b *bench) writeHolding(ctx context.Context, file *os.File, snapshots int) (took []time.Duration, err error) {
	var taken []client.Object
	defer func() { err = errors.Join(err, b.DeleteAll(ctx, taken), b.awaitStored(ctx, 0)) }()
	class := cluster.SnapshotClass
	claim := "data"
	for i := range max(1, snapshots) {
		if err := fill(file); err != nil {
			return nil, err
		}
		if snapshots == 0 {
			break
		}
		taken = append(taken, &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: latencyNamespace, Name: fmt.Sprintf("held-%d", i+1)},
			Spec: snapshotv1.VolumeSnapshotSpec{
				Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}, VolumeSnapshotClassName: &class,
			},
		})
		if err := b.Objects().Create(ctx, taken[i]); err != nil {
			return nil, err
		}
		if err := b.ready(ctx, taken[i:]); err != nil {
			return nil, err
		}
	}
	if err := b.awaitStored(ctx, snapshots); err != nil {
		return nil, err
	}
	block := make([]byte, latencyBlock)
	order := rand.Perm(latencyFileSize / latencyBlock) //nolint:gosec // nobody is to be kept from guessing it
	for _, at := range order[:latencyWrites] {
		scribble(block)
		began := time.Now()
		if _, err := file.WriteAt(block, int64(at)*latencyBlock); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// fill writes all of the file, a megabyte at a time.
func fill(file *os.File) error {
	const piece = 1 << 20
	content := make([]byte, piece)
	for at := int64(0); at < latencyFileSize; at += piece {
		scribble(content)
		if _, err := file.WriteAt(content, at); err != nil {
			return err
		}
	}
	return nil
}

// scribble fills memory with what has not been there before.
func scribble(content []byte) {
	for i := 0; i+8 <= len(content); i += 8 {
		word := rand.Uint64() //nolint:gosec // nor this
		for j := range 8 {
			content[i+j] = byte(word >> (8 * j))
		}
	}
}

// awaitStored waits until the storage holds so many snapshots of the volume.
func (b *bench) awaitStored(ctx context.Context, want int) error {
	return stage.Until(ctx, fmt.Sprintf("the storage holds %d snapshots", want), func(ctx context.Context) (bool, error) {
		stored, err := b.StoredSnapshots(ctx, latencyNamespace, "data")
		return len(stored) == want, err
	})
}

// quantile of at least one: the shortest that is not exceeded by this part.
func quantile(of []time.Duration, part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)-1, int(part*float64(len(sorted))))]
}
