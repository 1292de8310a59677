// Package delete holds the action that Velero calls while it deletes a backup,
// also one that has expired. It converts and passes on; what is removed is
// decided in package expiry.
package delete

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/expiry"
)

// callLimit bounds one call of Velero's, which brings no context along and
// deletes one backup after another. The storage may need longer; what is left
// then is the sweep's.
const callLimit = time.Minute

type action struct{ expiry *expiry.Expiry }

// New makes the action.
func New(log logrus.FieldLogger) (any, error) {
	clients, err := cluster.NewClients()
	if err != nil {
		return nil, fmt.Errorf("stillpoint: %w", err)
	}
	return &action{expiry.New(clients, log)}, nil
}

// AppliesTo is what every backup with volumes has: any item will do.
func (*action) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"namespaces", "persistentvolumeclaims"}}, nil
}

func (a *action) Execute(input *velero.DeleteItemActionExecuteInput) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := a.expiry.Backup(ctx, input.Backup); err != nil {
		return fmt.Errorf("stillpoint: %w", err)
	}
	return nil
}
