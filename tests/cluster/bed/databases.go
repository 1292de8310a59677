package bed

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/image"
)

// The images of databases. They are made of Debian's packages, which are
// unpacked for this and not installed, and imported by those who ask for them.
const (
	// PostgreSQLImage has the server, psql, pgbench and pg_amcheck.
	PostgreSQLImage = "stillpoint.local/postgresql:15"
	// MariaDBImage has the server and its client.
	MariaDBImage = "stillpoint.local/mariadb:10.11"
	// RedisImage has the server and redis-cli.
	RedisImage = "stillpoint.local/redis:7"
	// MongoDBImage has no MongoDB, which Debian does not have: a mongosh that
	// writes down how it is called.
	MongoDBImage = "stillpoint.local/mongodb-standin:1"
)

// databasePackages are unpacked with the libraries that they depend on.
var databasePackages = []string{
	"bash", "dash", "tzdata", "util-linux", "zlib1g",
	"postgresql-15", "postgresql-client-15",
	"mariadb-server-core", "mariadb-client-core",
	"redis-server", "redis-tools",
}

// unneededLibraries are large, and for what no test does.
var unneededLibraries = []string{"libllvm14", "libz3-4", "libperl5.36"}

// databaseScripts start the databases in their images.
//
//go:embed databases
var databaseScripts embed.FS

// Databases makes the images of databases and imports them. It is quick when
// they are there. It must be called outside of the cluster's network, which has
// no way to Debian's packages.
func (b *Bed) Databases(ctx context.Context) error {
	if err := CheckMachine(); err != nil {
		return err
	}
	unlock, err := b.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	root, err := b.unpackDatabases(ctx)
	if err != nil {
		return fmt.Errorf("unpack the databases: %w", err)
	}
	images := map[string]*image.Contents{}
	for ref, fill := range map[string]func(*image.Contents) error{
		PostgreSQLImage: postgreSQL, MariaDBImage: mariaDB, RedisImage: redis, MongoDBImage: mongoDB,
	} {
		c, err := databaseBase(ctx, root)
		if err == nil {
			err = fill(c)
		}
		if err != nil {
			return fmt.Errorf("make image %s: %w", ref, err)
		}
		images[ref] = c
	}
	imported, err := b.importMissing(ctx, images)
	if len(imported) > 0 {
		b.Say("imported %s", strings.Join(imported, ", "))
	}
	return err
}

// unpackDatabases is a directory with the files of the packages.
func (b *Bed) unpackDatabases(ctx context.Context) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(databasePackages, " ")))
	dir := b.path("build", "databases-"+hex.EncodeToString(sum[:])[:keyLength])
	_, err := os.Stat(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	aside := dir + ".unfinished"
	if err := os.RemoveAll(aside); err != nil {
		return "", err
	}
	err = b.progress("databases from Debian's packages", func() error { return b.unpackInto(ctx, aside) })
	if err != nil {
		return "", err
	}
	if err := os.Rename(aside, dir); err != nil {
		return "", err
	}
	return dir, b.forgetOlder("databases", dir)
}

func (b *Bed) unpackInto(ctx context.Context, dir string) error {
	packages, err := databaseClosure(ctx)
	if err != nil {
		// The lists may never have been fetched, or be out of date.
		if _, err := command(ctx, "apt-get", "update", "--quiet"); err != nil {
			return err
		}
		if packages, err = databaseClosure(ctx); err != nil {
			return err
		}
	}
	debs := b.path("build", "debs")
	defer os.RemoveAll(debs)
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	download := append([]string{"-C", debs, "apt-get", "download", "--quiet"}, packages...)
	if _, err := command(ctx, "env", download...); err != nil {
		if _, err := command(ctx, "apt-get", "update", "--quiet"); err != nil {
			return err
		}
		if _, err := command(ctx, "env", download...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if _, err := command(ctx, "dpkg-deb", "--extract", file, dir); err != nil {
			return err
		}
	}
	return nil
}

// databaseClosure are the packages and the libraries they need, as apt would
// install them on a machine that has nothing.
func databaseClosure(ctx context.Context) ([]string, error) {
	plan, err := command(ctx, "apt-get", append([]string{
		"--quiet", "--simulate", "--no-install-recommends", "--option", "Dir::State::status=/dev/null", "install",
	}, databasePackages...)...)
	if err != nil {
		return nil, err
	}
	packages := slices.Clone(databasePackages)
	for line := range strings.Lines(plan) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "Inst" || !strings.HasPrefix(fields[1], "lib") {
			continue
		}
		name, _, _ := strings.Cut(fields[1], ":")
		if !slices.Contains(unneededLibraries, name) && !strings.HasSuffix(name, "-perl") {
			packages = append(packages, name)
		}
	}
	return packages, nil
}

// databaseBase is what all of them have: shells, the tools of busybox, fsfreeze
// and setpriv, and users.
func databaseBase(ctx context.Context, root string) (*image.Contents, error) {
	c := base()
	c.Root = root
	if err := addBusybox(ctx, c); err != nil {
		return nil, err
	}
	for at, source := range map[string]string{
		"/bin/dash": "/bin/dash", "/bin/sh": "/bin/dash", "/bin/bash": "/bin/bash",
		"/sbin/fsfreeze": "/sbin/fsfreeze", "/usr/bin/setpriv": "/usr/bin/setpriv",
	} {
		if err := c.Dynamic(at, source); err != nil {
			return nil, err
		}
	}
	c.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"+
		"postgres:x:999:999::/var/lib/postgresql:/bin/sh\nmysql:x:998:998::/var/lib/mysql:/bin/sh\nredis:x:997:997::/data:/bin/sh\n")
	c.Text("/etc/group", "root:x:0:\nnobody:x:65534:\npostgres:x:999:\nmysql:x:998:\nredis:x:997:\n")
	return c, nil
}

func postgreSQL(c *image.Contents) error {
	const home = "/usr/lib/postgresql/15"
	for _, program := range []string{"initdb", "pgbench", "pg_amcheck", "pg_controldata", "pg_isready", "postgres", "psql"} {
		if err := c.Dynamic(home+"/bin/"+program, home+"/bin/"+program); err != nil {
			return err
		}
		c.Link("/usr/bin/"+program, home+"/bin/"+program)
	}
	for _, module := range []string{"amcheck", "dict_snowball", "plpgsql"} {
		if err := c.Dynamic(home+"/lib/"+module+".so", home+"/lib/"+module+".so"); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/usr/share/postgresql/15", "/usr/share/zoneinfo/Etc"} {
		if err := c.Tree(dir); err != nil {
			return err
		}
	}
	c.Link("/var/run", "/run")
	c.Dir("/run/postgresql", 0o1777)
	return addScript(c, "postgresql")
}

func mariaDB(c *image.Contents) error {
	for at, source := range map[string]string{
		"/usr/sbin/mariadbd": "/usr/sbin/mariadbd", "/usr/bin/mariadb": "/usr/bin/mariadb",
		"/usr/bin/my_print_defaults": "/usr/bin/my_print_defaults", "/usr/bin/resolveip": "/usr/bin/resolveip",
	} {
		if err := c.Dynamic(at, source); err != nil {
			return err
		}
	}
	c.Program("/usr/bin/mariadb-install-db", filepath.Join(c.Root, "/usr/bin/mariadb-install-db"))
	if err := c.Tree("/usr/share/mysql"); err != nil {
		return err
	}
	c.Dir("/run/mysqld", 0o1777)
	return addScript(c, "mariadb")
}

func redis(c *image.Contents) error {
	for _, program := range []string{"redis-server", "redis-cli"} {
		if err := c.Dynamic("/usr/bin/"+program, "/usr/bin/"+program); err != nil {
			return err
		}
	}
	return addScript(c, "redis")
}

func mongoDB(c *image.Contents) error { return addScript(c, "mongosh") }

// addScript adds the script of that name to where programs are.
func addScript(c *image.Contents, name string) error {
	content, err := databaseScripts.ReadFile(path.Join("databases", name+".sh"))
	if err != nil {
		return err
	}
	at := "/usr/local/bin/start-" + name
	if name == "mongosh" {
		at = "/usr/bin/mongosh"
	}
	c.Script(at, string(content))
	return nil
}
