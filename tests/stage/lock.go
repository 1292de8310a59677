package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

// Lock keeps a second run of the same command from clearing away what the
// first is working with: it waits, and says so. The lock goes when the process
// ends, however it does.
func (s *Stage) Lock(ctx context.Context, name string) error {
	b, err := bed.Open(func(string, ...any) {})
	if err != nil {
		return err
	}
	file := filepath.Join(b.Dir, name+".lock")
	fd, err := unix.Open(file, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock: %w", &os.PathError{Op: "open", Path: file, Err: err})
	}
	told := false
	return Until(ctx, "no other "+name+" is at work", func(context.Context) (bool, error) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			if !told {
				s.Say("Another %s is at work on this test bed; this one waits for it.", name)
			}
			told = true
			return false, nil
		}
		return err == nil, err
	})
}
