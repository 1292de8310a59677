package quiesce

import (
	"os"
	"testing"

	"stillpoint.io/stillpoint/internal/render"
)

// TestMain lets the test program render templates in its child process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == render.Command {
		os.Exit(render.Serve(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}
