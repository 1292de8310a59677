package selection

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/velero"
)

// included returns the filters of the backup, which are read once.
func (s *Selection) included(ctx context.Context) (*velero.Filters, error) {
	if _, _, err := s.helpers(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filters != nil {
		return s.filters, nil
	}
	read, err := velero.ReadFilters(ctx, s.client, s.backup, s.log)
	if err == nil {
		s.filters = read
	}
	return read, err
}

// includedClaims returns the claims of a namespace that are in the backup.
func (s *Selection) includedClaims(ctx context.Context, f *velero.Filters, namespace string) (map[string]bool, error) {
	pods, claims := &corev1.PodList{}, &corev1.PersistentVolumeClaimList{}
	if err := s.client.List(ctx, pods, crclient.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	if err := s.client.List(ctx, claims, crclient.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list the claims of namespace %s: %w", namespace, err)
	}
	return f.Needed(pods.Items, claims.Items, s.log), nil
}
