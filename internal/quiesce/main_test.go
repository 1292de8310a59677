package quiesce

import (
	"os"
	"testing"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// TestMain makes the program of the tests what renders their templates.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == blueprint.RenderCommand {
		os.Exit(blueprint.ServeTemplates(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}
