package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// claims is how many volumes the namespace has that is measured as a whole.
	// Nobody uses them, and nobody is quiesced for them.
	claims          = 50
	claimsNamespace = "bench-claims"
	// Velero alone takes more than four minutes for the claims.
	veleroRuns, stillpointRuns = 1, 3
	claimsLimit                = 15 * time.Minute
	// boundLimit is for making the volumes.
	boundLimit = 2 * time.Minute
)

// bulk is what the backups of all claims took.
type bulk struct {
	velero, stillpoint []taken
}

// taken is what one backup took.
type taken struct {
	time     time.Duration
	requests []cluster.Request
}

// measureClaims backs up a namespace of many claims, by Velero alone and with
// the volume policy, and counts what that asks of the API server.
func (b *bench) measureClaims(ctx context.Context, found *results) error {
	if err := b.makeClaims(ctx); err != nil {
		return fmt.Errorf("make %d claims: %w", claims, err)
	}
	for run := range veleroRuns {
		t, err := b.backUpClaims(ctx, fmt.Sprintf("bench-claims-velero-%d", run+1), false)
		if err != nil {
			return err
		}
		found.claims.velero = append(found.claims.velero, t)
		b.Say("%d claims, Velero alone, run %d of %d: %.1f s, %d requests", claims, run+1, veleroRuns, t.time.Seconds(), len(t.requests))
	}
	for run := range stillpointRuns {
		peak := b.watchMemory(ctx)
		t, err := b.backUpClaims(ctx, fmt.Sprintf("bench-claims-stillpoint-%d", run+1), true)
		rss, sampled := peak()
		if err = errors.Join(err, sampled); err != nil {
			return err
		}
		found.claims.stillpoint = append(found.claims.stillpoint, t)
		found.process.rss = append(found.process.rss, rss)
		b.Say("%d claims, volume policy, run %d of %d: %.1f s, %d requests, plugin %.1f MiB resident",
			claims, run+1, stillpointRuns, t.time.Seconds(), len(t.requests), rss)
	}
	return nil
}

// makeClaims makes a namespace with the claims and waits until they have their
// volumes, which needs no pod.
func (b *bench) makeClaims(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, boundLimit)
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: claimsNamespace, Labels: ours}}
	if err := b.Objects().Create(ctx, ns); err != nil {
		return err
	}
	err := atOnce(claims, func(i int) error {
		return b.Objects().Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: claimsNamespace, Name: fmt.Sprintf("data%d", i+1)},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
			},
		})
	})
	if err != nil {
		return err
	}
	return stage.Until(ctx, "all claims are bound", func(ctx context.Context) (bool, error) {
		list := &corev1.PersistentVolumeClaimList{}
		err := b.Objects().List(ctx, list, client.InNamespace(claimsNamespace))
		bound := 0
		for i := range list.Items {
			if list.Items[i].Status.Phase == corev1.ClaimBound {
				bound++
			}
		}
		return bound == claims, err
	})
}

// backUpClaims makes one backup of the claims. Its time is from when the Backup
// is there until it is Completed.
func (b *bench) backUpClaims(ctx context.Context, name string, byPolicy bool) (taken, error) {
	ctx, cancel := context.WithTimeout(ctx, claimsLimit)
	defer cancel()
	creating := func() error { return b.createBackup(ctx, name, claimsNamespace, byPolicy) }
	backup, from, to, err := b.WatchBackup(ctx, name, creating)
	if err != nil {
		return taken{}, err
	}
	if err := b.Promised(ctx, backup); err != nil {
		return taken{}, err
	}
	if err := snapshotted(backup, claims); err != nil {
		return taken{}, err
	}
	requests, err := b.requests(from, to)
	return taken{to.Sub(from), requests}, err
}

// requests are those of the Velero server and its plugins in this time.
func (b *bench) requests(from, to time.Time) ([]cluster.Request, error) {
	all, err := b.VeleroRequests(from, to)
	if err != nil {
		return nil, err
	}
	var found []cluster.Request
	for _, r := range all {
		if strings.HasPrefix(r.Pod, "velero-") { // not the node-agent's
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the audit log has no request of Velero: has the API server been started by another version of the test bed? `testbed up` mends it")
	}
	return found, nil
}
