package main

import (
	"context"
	"os"
	"os/signal"
	"strings"

	"github.com/hashicorp/go-plugin"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/plugins/backup"
	"stillpoint.io/stillpoint/plugins/check"
	"stillpoint.io/stillpoint/plugins/command"
	"stillpoint.io/stillpoint/plugins/delete"
	"stillpoint.io/stillpoint/plugins/restore"
	"stillpoint.io/stillpoint/plugins/sweep"
	"stillpoint.io/stillpoint/plugins/thaw"
)

func main() {
	// Velero sets the variable of go-plugin's handshake. Without it, the caller is a
	// user, or the container that `velero plugin add` has added to the server's pod.
	handshake := framework.Handshake()
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		os.Exit(run(os.Args[1:]))
	}
	defer plugin.CleanupClients()
	defer thaw.AtStart(handshake.MagicCookieKey)()

	features := pflag.CommandLine.String("features", "", "features of the Velero server, separated by commas")
	shared := backup.NewShared(func() bool { return enabled(*features, "EnableCSI") })
	restores := &restore.Shared{}
	framework.NewServer().
		BindFlags(pflag.CommandLine).
		RegisterBackupItemAction("stillpoint.io/quiesce-volume", shared.Volume).
		RegisterBackupItemActionV2("stillpoint.io/claim", shared.Claim).
		RegisterItemBlockAction("stillpoint.io/quiesce-pods", shared.Pods).
		RegisterVolumeSnapshotter(spec.Provider, shared.Locations).
		RegisterVolumeSnapshotter(externalstorage.Provider, shared.ExternalLocations).
		RegisterRestoreItemAction("stillpoint.io/restore-snapshot", restores.Snapshots).
		RegisterRestoreItemAction("stillpoint.io/restore-volume", restores.Volumes).
		RegisterRestoreItemActionV2("stillpoint.io/owner-references", restores.Owners).
		RegisterRestoreItemAction("stillpoint.io/restore-external-snapshot", restore.ExternalSnapshots).
		RegisterRestoreItemActionV2("stillpoint.io/restore-claim", restores.Claims).
		RegisterRestoreItemAction("stillpoint.io/restore-statefulset", restores.StatefulSets).
		RegisterDeleteItemAction("stillpoint.io/delete-leftovers", delete.New).
		Serve()
}

// run executes a command and returns its exit code.
func run(args []string) int {
	// Suppress client-go's log lines about a closed stream; the commands return the
	// error.
	utilruntime.ErrorHandlers = nil //nolint:reassign // there is no other way
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return command.Execute(ctx, root(), args, os.Stdout, os.Stderr)
}

func root() *cobra.Command {
	// The pod of a thaw on a node runs the first command, the plugin itself the second.
	thawVolumes := &cobra.Command{
		Use: node.Command, Hidden: true, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, paths []string) error {
			return command.Exit(node.ThawVolumes(paths, os.Stdout, os.Stderr))
		},
	}
	renderTemplates := &cobra.Command{
		Use: render.Command, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return command.Exit(render.Serve(os.Stdin, os.Stdout))
		},
	}
	return command.Tree(install(), check.New(), sweep.New(), thaw.New(), version(), thawVolumes, renderTemplates)
}

// enabled reports whether the list of features contains name.
func enabled(features, name string) bool {
	for feature := range strings.SplitSeq(features, ",") {
		if strings.TrimSpace(feature) == name {
			return true
		}
	}
	return false
}
