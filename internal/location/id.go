package location

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// version is the version of new snapshot IDs.
const version = "v1"

// EncodeID returns the ID by which Velero keeps a snapshot: provider, version, and the
// fields as JSON. It is all that a restore knows, perhaps years later and in another
// cluster.
func EncodeID(provider string, fields any) (string, error) {
	content, err := json.Marshal(fields)
	if err != nil {
		return "", fmt.Errorf("encode the id of a snapshot: %w", err)
	}
	return strings.Join([]string{provider, version, string(content)}, ":"), nil
}

// DecodeID reads an ID. Another provider, another version and unknown fields are
// errors: half an identity would restore something else.
func DecodeID(provider, id string, into any) error {
	parts := strings.SplitN(id, ":", 3)
	switch {
	case len(parts) < 3:
		return fmt.Errorf("snapshot id %q is not one of provider %s, which begin with %q", id, provider, provider+":"+version+":")
	case parts[0] != provider:
		return fmt.Errorf("snapshot id %q is of provider %s, and not of %s", id, parts[0], provider)
	case parts[1] != version:
		return fmt.Errorf("snapshot id %q has the version %s, and this Stillpoint knows %s; install the release that took the snapshot, or a later one", id, parts[1], version)
	}
	decoder := json.NewDecoder(bytes.NewBufferString(parts[2]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("read snapshot id %q: %w", id, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("snapshot id %q goes on after its end", id)
	}
	return nil
}
