package render

import (
	"os"
	"testing"
)

// TestMain makes the program of the tests what renders their templates.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Serve(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}
