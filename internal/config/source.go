package config

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// sourceLife is how long a Source uses a configuration before it reads it again.
const sourceLife = time.Minute

// Source reads the configuration for all parts of a process, so that they act on the
// same version of it. It is safe for concurrent use.
type Source struct {
	client    kubernetes.Interface
	namespace string
	clock     clock.PassiveClock

	mu     sync.Mutex
	until  time.Time
	config *Config
}

// NewSource returns a Source for the Velero in a namespace.
func NewSource(client kubernetes.Interface, veleroNamespace string, clock clock.PassiveClock) *Source {
	return &Source{client: client, namespace: veleroNamespace, clock: clock}
}

// Get returns the configuration, which is a minute old at the most. It does not
// remember an error.
func (s *Source) Get(ctx context.Context) (*Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clock.Now().Before(s.until) {
		return s.config, nil
	}
	config, err := Load(ctx, s.client, s.namespace)
	if err != nil {
		return nil, err
	}
	s.config, s.until = config, s.clock.Now().Add(sourceLife)
	return config, nil
}
