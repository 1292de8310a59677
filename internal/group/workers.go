package group

import (
	"context"
	"slices"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WorkersWarning is what users should know of a server with several workers.
const WorkersWarning = "Velero 1.18 collects the operations of a backup without a lock: with --item-block-worker-count above 1 it can lose one, " +
	"and with it the end of a DataUpload; set it to 1 in backups that move data"

// warnOfWorkers looks how many workers the server has.
func (r *run) warnOfWorkers(ctx context.Context) {
	server, err := r.clients.Kube.AppsV1().Deployments(r.backup.Namespace).Get(ctx, "velero", metav1.GetOptions{})
	if err != nil {
		return // another name, or no right to look: nothing to tell
	}
	if n := Workers(server); n > 1 {
		r.log.Warnf("The server has %d workers. %s", n, WorkersWarning)
	}
}

// Workers is the number of workers that a Velero server's Deployment sets; 1,
// Velero's default, where it sets none that is valid.
func Workers(server *appsv1.Deployment) int {
	for _, container := range server.Spec.Template.Spec.Containers {
		flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
		flags.ParseErrorsAllowlist.UnknownFlags = true
		workers := flags.Int("item-block-worker-count", 1, "")
		err := flags.Parse(slices.Concat(container.Command, container.Args))
		if err == nil && flags.Changed("item-block-worker-count") {
			return *workers
		}
	}
	return 1
}
