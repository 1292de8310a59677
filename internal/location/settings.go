package location

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"stillpoint.io/stillpoint/internal/velero"
)

// Key is a valid key in the config of a VolumeSnapshotLocation.
type Key struct {
	// Name is the key. In a family such as volumeSnapshotClass/<StorageClass> it is
	// the part before the slash.
	Name string
	// Of describes the part after the slash in messages, such as StorageClass.
	Of string
	// Set stores the value. of is the part after the slash. The error says which
	// values are valid.
	Set func(of, value string) error
}

func (k Key) String() string {
	if k.Of == "" {
		return k.Name
	}
	return k.Name + "/<" + k.Of + ">"
}

// Decode reads the config of a location. Its error names all unknown keys and invalid
// values.
func Decode(provider string, config map[string]string, keys ...Key) error {
	var valid []string
	for _, key := range keys {
		valid = append(valid, key.String())
	}
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("VolumeSnapshotLocation of provider %s: spec.config: key %s: %w", provider, key, fmt.Errorf(format, args...)))
	}
	for _, name := range slices.Sorted(maps.Keys(config)) {
		base, of, family := strings.Cut(name, "/")
		i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == base && family == (k.Of != "") })
		switch {
		case name == velero.CredentialsFile:
		case i < 0:
			fault(name, "unknown key; valid keys: %s", strings.Join(valid, ", "))
		case family && len(validation.IsDNS1123Subdomain(of)) > 0:
			fault(name, "%q cannot be the name of a %s", of, keys[i].Of)
		default:
			if err := keys[i].Set(of, config[name]); err != nil {
				fault(name, "value %q: %w", config[name], err)
			}
		}
	}
	return errors.Join(errs...)
}

// Name is a key whose value names an object.
func Name(key string, into *string) Key {
	return Key{Name: key, Set: func(_, value string) error {
		if faults := validation.IsDNS1123Subdomain(value); len(faults) > 0 {
			return fmt.Errorf("not the name of an object: %s", strings.Join(faults, "; "))
		}
		*into = value
		return nil
	}}
}

// Names is a family of keys whose values name objects.
func Names(key, of string, into map[string]string) Key {
	return Key{Name: key, Of: of, Set: func(of, value string) error {
		name := ""
		err := Name(key, &name).Set("", value)
		into[of] = name
		return err
	}}
}

// Duration is a key whose value is a positive duration.
func Duration(key string, into *time.Duration) Key {
	return Key{Name: key, Set: func(_, value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return errors.New("must be a positive duration, such as 90s or 10m")
		}
		*into = d
		return nil
	}}
}

// Globs is a key whose value is a comma-separated list of patterns of path.Match.
func Globs(key string, into *[]string) Key {
	return Key{Name: key, Set: func(_, value string) error {
		list, err := List(value)
		if err != nil {
			return err
		}
		for _, glob := range list {
			if _, err := path.Match(glob, ""); err != nil {
				return fmt.Errorf("pattern %q: %w; *, ? and [a-z] are supported", glob, err)
			}
		}
		*into = list
		return nil
	}}
}

// List splits a value at its commas. An empty entry is an error.
func List(value string) ([]string, error) {
	var list []string
	for entry := range strings.SplitSeq(value, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			return nil, errors.New("has an empty entry; separate entries by one comma")
		}
		list = append(list, entry)
	}
	return list, nil
}

// Matches reports whether one of the globs matches a name; no globs match all names.
func Matches(globs []string, name string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(glob string) bool {
		ok, err := path.Match(glob, name)
		return err == nil && ok
	})
}
