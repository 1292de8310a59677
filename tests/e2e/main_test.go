package e2e

import (
	"flag"
	"os"
	"strconv"
	"testing"

	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/tests/cluster"
)

// atOnce is how many of the tests run that may run beside each other. What they do
// is wait for Velero and for pods, so it is not how many processors there are.
const atOnce = 6

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == render.Command {
		os.Exit(render.Serve(os.Stdin, os.Stdout))
	}
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce)); err != nil {
		panic(err)
	}
	cluster.Main(m, atItsOwnPace)
}
