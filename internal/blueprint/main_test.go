package blueprint

import (
	"os"
	"testing"
)

// TestMain makes the program of the tests what renders their templates.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == RenderCommand {
		os.Exit(ServeTemplates(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}
