package loopcsi

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// pack writes the content of a volume or snapshot as a compressed tar archive,
// in which what an image does not use takes next to no room.
func pack(dir string, to io.Writer) error {
	compressed, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(compressed)
	for _, root := range []string{image, tree} {
		err := filepath.WalkDir(filepath.Join(dir, root), func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == filepath.Join(dir, root) {
				return nil // it is of the other kind
			}
			if err != nil {
				return err
			}
			return packEntry(archive, dir, path)
		})
		if err != nil {
			return fmt.Errorf("pack %s: %w", dir, err)
		}
	}
	return errors.Join(archive.Close(), compressed.Close())
}

func packEntry(archive *tar.Writer, dir, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	if header.Name, err = filepath.Rel(dir, path); err != nil {
		return err
	}
	header.Uname, header.Gname = "", ""
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	_, err = io.Copy(archive, file)
	return err
}

// unpack puts what pack wrote into dir, with owners and modes.
func unpack(from io.Reader, dir string) error {
	decompressed, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer decompressed.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	archive := tar.NewReader(decompressed)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = unpackEntry(root, header, archive)
		}
		if err != nil {
			return fmt.Errorf("unpack into %s: %w", dir, err)
		}
	}
}

func unpackEntry(root *os.Root, header *tar.Header, content io.Reader) error {
	var err error
	switch header.Typeflag {
	case tar.TypeDir:
		err = root.Mkdir(header.Name, 0o700)
	case tar.TypeSymlink:
		err = root.Symlink(header.Linkname, header.Name)
	case tar.TypeReg:
		var file *os.File
		if file, err = root.OpenFile(header.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			err = errors.Join(copySparse(file, content, header.Size), file.Close())
		}
	default:
		err = fmt.Errorf("%s is of type %q", header.Name, header.Typeflag)
	}
	if err == nil {
		err = root.Lchown(header.Name, header.Uid, header.Gid)
	}
	if err == nil && header.Typeflag != tar.TypeSymlink {
		err = root.Chmod(header.Name, header.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
	}
	return err
}

// copySparse leaves out blocks of zeros, which an image is full of.
func copySparse(to *os.File, from io.Reader, size int64) error {
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < size; {
		n, err := io.ReadFull(from, block[:min(int64(len(block)), size-at)])
		if err != nil {
			return err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := to.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return to.Truncate(size)
}
