package bed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A session is a use of the bed that takes it down at its end. The mark
// outlives a session that was killed, so that the next one knows that the
// cluster which still runs is nobody's.

func (b *Bed) sessionMark() string { return b.path("session") }

// InSession tells whether the running cluster belongs to a session.
func (b *Bed) InSession() bool {
	_, err := os.Stat(b.sessionMark())
	return err == nil
}

// BeginSession marks the cluster as a session's.
func (b *Bed) BeginSession() error {
	if err := os.MkdirAll(b.path(), 0o755); err != nil {
		return fmt.Errorf("mark the session: %w", err)
	}
	if err := os.WriteFile(b.sessionMark(), nil, 0o644); err != nil {
		return fmt.Errorf("mark the session: %w", err)
	}
	return nil
}

// EndSession makes the cluster one that stays up until it is taken down.
func (b *Bed) EndSession() error {
	if err := os.Remove(b.sessionMark()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the session: %w", err)
	}
	return nil
}
