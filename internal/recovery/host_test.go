package recovery

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// host runs commands in shells on this machine instead of containers.
type host struct {
	path   string // directory that is searched first for programs
	broken map[string]bool
}

func newHost() *host { return &host{broken: map[string]bool{}} }

func (h *host) Exec(ctx context.Context, container podexec.Container, command []string, streams podexec.Streams) error {
	if h.broken[container.Name] {
		return fmt.Errorf("%s is gone", container)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	if h.path != "" {
		cmd.Env = append(os.Environ(), "PATH="+h.path+":"+os.Getenv("PATH"))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.Stdin, streams.Stdout, streams.Stderr
	return cmd.Run()
}

// application writes a line to a file for each command.
type application struct{ journal string }

func newApplication(t *testing.T) application {
	return application{filepath.Join(t.TempDir(), "journal")}
}

func (a application) call(container, line string) render.Call {
	return render.Call{Namespace: "shop", Pod: "db-0", Container: container, Command: []string{"sh", "-c", fmt.Sprintf("echo %s >>%s", line, a.journal)}}
}

func (a application) lines(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile(a.journal)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(string(content))
}
