// Command stillpoint is the plugin set: Velero starts it with the arguments of
// its own server and calls it over go-plugin. In its image it is the entrypoint
// too, and then installs itself into Velero's plugin directory.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/hashicorp/go-plugin"
	"github.com/spf13/pflag"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"stillpoint.io/stillpoint/internal/location/csi"
	"stillpoint.io/stillpoint/internal/location/externalstorage"
	"stillpoint.io/stillpoint/internal/node"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/plugins/backup"
	"stillpoint.io/stillpoint/plugins/check"
	"stillpoint.io/stillpoint/plugins/delete"
	"stillpoint.io/stillpoint/plugins/restore"
	"stillpoint.io/stillpoint/plugins/sweep"
	"stillpoint.io/stillpoint/plugins/thaw"
)

func main() {
	// Velero says who is calling by go-plugin's handshake; without it this is a
	// person with a command, or a container that `velero plugin add` has put into
	// the server's pod.
	handshake := framework.Handshake()
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		commands := map[string]command{"check": check.Run, "sweep": sweep.Run, "thaw": thaw.Run, node.Command: thawVolumes, render.Command: renderTemplates}
		if len(os.Args) > 1 && commands[os.Args[1]] != nil {
			os.Exit(run(commands[os.Args[1]], os.Args[2:]))
		}
		if err := install(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "stillpoint: %v\n", err)
			os.Exit(1)
		}
		return
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
		RegisterVolumeSnapshotter(csi.Provider, shared.Locations).
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

// command is what a person runs; it returns its exit code.
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) int

func run(command command, args []string) int {
	// A stream to a container that is gone ends with noise about a closed pipe; what
	// it means is in the errors.
	utilruntime.ErrorHandlers = nil //nolint:reassign // there is no other way
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return command(ctx, args, os.Stdout, os.Stderr)
}

// thawVolumes is what the pod of a thaw on a node runs; no person needs it.
func thawVolumes(_ context.Context, args []string, stdout, stderr io.Writer) int {
	return node.ThawVolumes(args, stdout, stderr)
}

// renderTemplates is what a process of ours runs that renders templates for another.
func renderTemplates(context.Context, []string, io.Writer, io.Writer) int {
	return render.Serve(os.Stdin, os.Stdout)
}

func enabled(features, name string) bool {
	for feature := range strings.SplitSeq(features, ",") {
		if strings.TrimSpace(feature) == name {
			return true
		}
	}
	return false
}
