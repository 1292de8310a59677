package main

import (
	"cmp"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// The build sets these with -ldflags -X. Otherwise they come from the Go toolchain's
// build information.
var release, commit string

// veleroModule is the module whose plugin API this program implements.
const veleroModule = "github.com/vmware-tanzu/velero"

func version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version, and what it was built from",
		Long: "stillpoint version prints the version, and what it was built from.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				info = &debug.BuildInfo{}
			}
			var revision, velero string
			for _, setting := range info.Settings {
				if setting.Key == "vcs.revision" {
					revision = setting.Value
				}
			}
			for _, module := range info.Deps {
				if module.Path == veleroModule {
					velero = module.Version
				}
			}
			const unknown = "unknown"
			_, err := fmt.Fprintf(c.OutOrStdout(), "version:    %s\ncommit:     %s\nGo:         %s\nVelero API: %s\n",
				cmp.Or(release, info.Main.Version, unknown), cmp.Or(commit, revision, unknown),
				cmp.Or(info.GoVersion, unknown), cmp.Or(velero, unknown))
			return err
		},
	}
}
