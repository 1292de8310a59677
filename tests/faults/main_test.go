// Package faults shows that the plugin keeps its promises when something goes
// wrong, in milliseconds each: against an API server, a storage, containers and a
// Velero that are made up but behave as the real ones (package fake). What only a
// real cluster can show is in tests/e2e.
package faults

import (
	"flag"
	"log/slog"
	"os"
	"testing"

	"k8s.io/klog/v2"
	"stillpoint.io/stillpoint/internal/render"
)

// atOnce is how many tests run at the same time. They wait more than they compute.
const atOnce = "8"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == render.Command {
		os.Exit(render.Serve(os.Stdin, os.Stdout))
	}
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // connections that end with their test
	// Velero's own action polls each second instead of every five.
	if err := os.Setenv("CSI_SNAPSHOT_EARLY_FREQUENT_POLLING", "true"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
