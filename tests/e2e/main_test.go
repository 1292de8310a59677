package e2e

import (
	"testing"

	"stillpoint.io/stillpoint/tests/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }
