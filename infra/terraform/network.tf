# `members`: servers, workers and runs. Outgoing traffic is open; incoming traffic only from the group.
resource "aws_security_group" "members" {
  name        = "${var.name}-members"
  description = "Servers, workers and runs of the pipeline"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "members" {
  security_group_id = aws_security_group.members.id
  description       = "Image registry, object store, package index"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_ingress_rule" "servers" {
  for_each                     = { prefect = 4200, mlflow = 5000 }
  security_group_id            = aws_security_group.members.id
  referenced_security_group_id = aws_security_group.members.id
  description                  = "${each.key}, for members"
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL, for members of the pipeline only"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = aws_security_group.members.id
  description                  = "PostgreSQL, for members"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}
