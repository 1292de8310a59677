package cluster_test

import (
	"testing"

	"stillpoint.io/stillpoint/tests/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }
